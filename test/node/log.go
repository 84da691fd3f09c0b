package node

import (
	"bytes"
	"strings"
	"sync"
)

// Log collects the output of a process. When it exceeds maxLog bytes, the older
// half is dropped.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const maxLog = 8 << 20

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() > maxLog {
		l.b.Next(maxLog / 2)
	}
	return l.b.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Has tells whether the text is in the log.
func (l *Log) Has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.b.Bytes(), []byte(text))
}

// Count returns the number of lines that have all the texts in them.
func (l *Log) Count(texts ...string) (count int) {
lines:
	for line := range strings.Lines(l.String()) {
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue lines
			}
		}
		count++
	}
	return count
}

// Tail returns the last lines.
func (l *Log) Tail(lines int) string {
	all := strings.Split(l.String(), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
