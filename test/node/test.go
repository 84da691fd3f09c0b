package node

import (
	"testing"
	"time"
)

// Must fails the test if there is an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Eventually waits for a condition on another process, where real time passes. It
// asks often at first, and then every 20 ms.
func Eventually(t testing.TB, within time.Duration, what string, condition func() bool) {
	t.Helper()
	pause := time.Millisecond
	for deadline := time.Now().Add(within); !condition(); pause = min(pause*3/2, 20*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(pause)
	}
}
