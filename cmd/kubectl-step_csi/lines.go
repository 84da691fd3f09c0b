package main

import (
	"slices"
	"strings"
)

// keepLines returns the changed text with the blank lines of the original, and with the blanks
// in its lines, both of which the YAML encoder loses. reencoded is the original as the encoder
// writes it. If that differs from the original in more than blanks, the changed text stays as
// it is.
func keepLines(original, reencoded, changed string) string {
	from, blanks := nonBlankLines(original)
	again, _ := nonBlankLines(reencoded)
	to, usual := nonBlankLines(changed)
	if !slices.EqualFunc(from, again, func(a, b string) bool { return slices.Equal(strings.Fields(a), strings.Fields(b)) }) {
		return changed
	}
	var out strings.Builder
	kept := commonLines(again, to)
	for i, line := range to {
		count := usual[i]
		if j, found := kept[i]; found {
			line, count = from[j], blanks[j]
		}
		out.WriteString(strings.Repeat("\n", count) + line + "\n")
	}
	end := strings.TrimRight(original, "\r\n")
	out.WriteString(strings.Repeat("\n", max(0, strings.Count(original[len(end):], "\n")-1)))
	return out.String()
}

// nonBlankLines returns the lines that are not blank, and the number of blank lines in front
// of each.
func nonBlankLines(text string) (lines []string, blanks []int) {
	count := 0
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimRight(line, " \t\r")
		if line == "" {
			count++
			continue
		}
		lines, blanks = append(lines, line), append(blanks, count)
		count = 0
	}
	return lines, blanks
}

// maxDifferent limits the memory and time of commonLines.
const maxDifferent = 2000

// commonLines returns the indices of a longest common subsequence of the lines: of each such
// line in b, that of the line in a.
func commonLines(a, b []string) map[int]int {
	common := map[int]int{}
	start := 0
	for start < len(a) && start < len(b) && a[start] == b[start] {
		common[start] = start
		start++
	}
	endA, endB := len(a), len(b)
	for endA > start && endB > start && a[endA-1] == b[endB-1] {
		endA, endB = endA-1, endB-1
		common[endB] = endA
	}
	a, b = a[start:endA], b[start:endB]
	if len(a) > maxDifferent || len(b) > maxDifferent {
		return common
	}
	// longest[i][j] is the length for a[i:] and b[j:].
	longest := make([][]int, len(a)+1)
	for i := range longest {
		longest[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				longest[i][j] = longest[i+1][j+1] + 1
			} else {
				longest[i][j] = max(longest[i+1][j], longest[i][j+1])
			}
		}
	}
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i] == b[j]:
			common[start+j] = start + i
			i, j = i+1, j+1
		case longest[i+1][j] >= longest[i][j+1]:
			i++
		default:
			j++
		}
	}
	return common
}
