package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeVolume is a loop whose contents a test changes. It records when the loop acted,
// in seconds from the start.
type fakeVolume struct {
	*loop
	ctx     context.Context
	now     atomic.Int32
	changes chan struct{}
	begin   time.Time
	acted   []float64
	fail    func(try int) error
}

func newFakeVolume(t *testing.T) *fakeVolume {
	s := &fakeVolume{ctx: t.Context(), changes: make(chan struct{}, 1), begin: time.Now()}
	s.loop = &loop{
		log: slog.New(slog.DiscardHandler),
		contents: func() (digest, error) {
			now := byte(s.now.Load())
			if now == 0 {
				return digest{}, fs.ErrNotExist
			}
			return digest{now}, nil
		},
		changes: s.changes, debounce: time.Second, timeout: 30 * time.Second,
	}
	return s
}

func (s *fakeVolume) change(to int32) {
	s.now.Store(to)
	select {
	case s.changes <- struct{}{}:
	default:
	}
}

func (s *fakeVolume) act(context.Context) error {
	s.acted = append(s.acted, time.Since(s.begin).Seconds())
	if s.fail != nil {
		return s.fail(len(s.acted))
	}
	return nil
}

// expect runs the loop during the function, and compares when the loop acted.
func (s *fakeVolume) expect(t *testing.T, want []float64, during func()) {
	t.Helper()
	if !s.await(s.ctx) {
		t.Fatal("await returned false")
	}
	ctx, stop := context.WithCancel(s.ctx)
	go s.run(ctx, s.act)
	during()
	stop()
	synctest.Wait()
	if !slices.Equal(s.acted, want) {
		t.Errorf("acted at %v, want %v", s.acted, want)
	}
}

func TestOnceForSeveralChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeVolume(t)
		s.now.Store(1)
		s.expect(t, []float64{11}, func() {
			time.Sleep(10 * time.Second)
			s.change(2)
			time.Sleep(300 * time.Millisecond)
			s.change(3)
			time.Sleep(300 * time.Millisecond)
			s.change(4)
			time.Sleep(time.Hour)
		})
	})
}

// Continuous changes do not postpone the action for ever.
func TestContinuousChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeVolume(t)
		s.now.Store(1)
		s.expect(t, []float64{1, 2, 3}, func() {
			time.Sleep(50 * time.Millisecond)
			s.begin = time.Now()
			for i := range int32(30) {
				s.change(2 + i)
				time.Sleep(100 * time.Millisecond)
			}
			time.Sleep(time.Hour)
		})
	})
}

func TestRewriteIsNoChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeVolume(t)
		s.now.Store(1)
		s.expect(t, nil, func() {
			for range 10 {
				s.changes <- struct{}{}
				time.Sleep(time.Minute)
			}
		})
	})
}

func TestFilesDisappearAndReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeVolume(t)
		s.now.Store(1)
		s.expect(t, []float64{7213}, func() {
			s.change(0)
			time.Sleep(time.Hour)
			s.change(1) // the same contents as before
			time.Sleep(time.Hour)
			s.change(0)
			time.Sleep(12 * time.Second)
			s.change(2)
			time.Sleep(time.Hour)
		})
	})
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeVolume(t)
		s.now.Store(1)
		s.fail = func(try int) error {
			if try < 10 {
				return errors.New("no")
			}
			return nil
		}
		s.expect(t, []float64{1, 2, 4, 8, 16, 32, 64, 124, 184, 244}, func() {
			s.change(2)
			time.Sleep(time.Hour)
		})
	})
}

// A change during the backoff causes an action at once, and resets the backoff.
func TestChangeDuringBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeVolume(t)
		s.now.Store(1)
		s.fail = func(int) error { return errors.New("no") }
		s.expect(t, []float64{1, 2, 4, 8, 16, 21, 22, 24, 28}, func() {
			s.change(2)
			time.Sleep(20 * time.Second)
			s.change(3)
			time.Sleep(10 * time.Second)
		})
	})
}

// An action that hangs is canceled and retried.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeVolume(t)
		var took []time.Duration
		s.due = true
		s.now.Store(1)
		if !s.await(s.ctx) {
			t.Fatal("await returned false")
		}
		ctx, stop := context.WithCancel(s.ctx)
		go s.run(ctx, func(ctx context.Context) error {
			begin := time.Now()
			<-ctx.Done()
			took = append(took, time.Since(begin))
			return ctx.Err()
		})
		time.Sleep(62 * time.Second)
		stop()
		synctest.Wait()
		if want := []time.Duration{30 * time.Second, 30 * time.Second}; !slices.Equal(took[:2], want) {
			t.Errorf("took %v", took)
		}
	})
}

func TestWaitsForTheFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeVolume(t)
		s.due = true
		go func() {
			time.Sleep(time.Hour)
			s.change(1)
		}()
		s.expect(t, []float64{3600}, func() { time.Sleep(time.Hour) })
		ended, stop := context.WithCancel(s.ctx)
		stop()
		s.now.Store(0)
		if s.await(ended) {
			t.Error("await returned true without files")
		}
	})
}

// An action that panics is retried like one that fails.
func TestActionPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeVolume(t)
		s.now.Store(1)
		s.fail = func(try int) error {
			if try < 3 {
				panic("a bug")
			}
			return nil
		}
		s.expect(t, []float64{1, 2, 4}, func() {
			s.change(2)
			time.Sleep(time.Hour)
		})
	})
}

// A panic while the files are read is handled like files that cannot be read.
func TestReadPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeVolume(t)
		s.now.Store(1)
		read := s.contents
		s.contents = func() (digest, error) {
			if s.now.Load() == 2 {
				panic("a bug")
			}
			return read()
		}
		s.expect(t, []float64{61}, func() {
			s.change(2)
			time.Sleep(time.Minute)
			s.change(3)
			time.Sleep(time.Hour)
		})
	})
}
