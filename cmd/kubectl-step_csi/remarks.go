package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"
)

// remarks prints what the user has to know about a conversion, each in one line that begins
// with "# ".
type remarks struct {
	w io.Writer
	// lost is the number of remarks about what was not translated.
	lost  int
	notes map[string]bool
}

// lose prints that something at the place was not translated, and what to do.
func (r *remarks) lose(place, format string, args ...any) {
	r.lost++
	r.print(place + ": " + fmt.Sprintf(format, args...))
}

// note prints what to know about something that was translated, once.
func (r *remarks) note(place, format string, args ...any) {
	text := "note: " + place + ": " + fmt.Sprintf(format, args...)
	if !r.notes[text] {
		r.notes[text] = true
		r.print(text)
	}
}

// print prints the text as one line: it may contain anything from a manifest.
func (r *remarks) print(text string) {
	line := strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return ' '
	}, text)
	fmt.Fprintln(r.w, "# "+line)
}
