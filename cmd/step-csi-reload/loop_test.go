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

// fakeVolume is a loop whose contents the test changes. It records when the loop
// acted, in seconds since the start.
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
	v := &fakeVolume{ctx: t.Context(), changes: make(chan struct{}, 1), begin: time.Now()}
	v.loop = &loop{
		log: slog.New(slog.DiscardHandler),
		contents: func() (digest, error) {
			now := byte(v.now.Load())
			if now == 0 {
				return digest{}, fs.ErrNotExist
			}
			return digest{now}, nil
		},
		changes: v.changes, debounce: time.Second, timeout: 30 * time.Second,
	}
	return v
}

func (v *fakeVolume) change(to int32) {
	v.now.Store(to)
	select {
	case v.changes <- struct{}{}:
	default:
	}
}

func (v *fakeVolume) act(context.Context) error {
	v.acted = append(v.acted, time.Since(v.begin).Seconds())
	if v.fail != nil {
		return v.fail(len(v.acted))
	}
	return nil
}

// expect runs the loop during the function and compares the times when the loop
// acted.
func (v *fakeVolume) expect(t *testing.T, want []float64, during func()) {
	t.Helper()
	if !v.await(v.ctx) {
		t.Fatal("await returned false")
	}
	ctx, stop := context.WithCancel(v.ctx)
	go v.run(ctx, v.act)
	during()
	stop()
	synctest.Wait()
	if !slices.Equal(v.acted, want) {
		t.Errorf("acted at %v, want %v", v.acted, want)
	}
}

func TestOnceForSeveralChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newFakeVolume(t)
		v.now.Store(1)
		v.expect(t, []float64{11}, func() {
			time.Sleep(10 * time.Second)
			v.change(2)
			time.Sleep(300 * time.Millisecond)
			v.change(3)
			time.Sleep(300 * time.Millisecond)
			v.change(4)
			time.Sleep(time.Hour)
		})
	})
}

// Continuous changes do not postpone the action forever.
func TestContinuousChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newFakeVolume(t)
		v.now.Store(1)
		v.expect(t, []float64{1, 2, 3}, func() {
			time.Sleep(50 * time.Millisecond)
			v.begin = time.Now()
			for i := range int32(30) {
				v.change(2 + i)
				time.Sleep(100 * time.Millisecond)
			}
			time.Sleep(time.Hour)
		})
	})
}

func TestRewriteIsNoChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newFakeVolume(t)
		v.now.Store(1)
		v.expect(t, nil, func() {
			for range 10 {
				v.changes <- struct{}{}
				time.Sleep(time.Minute)
			}
		})
	})
}

func TestFilesDisappearAndReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newFakeVolume(t)
		v.now.Store(1)
		v.expect(t, []float64{7213}, func() {
			v.change(0)
			time.Sleep(time.Hour)
			v.change(1) // the same contents as before
			time.Sleep(time.Hour)
			v.change(0)
			time.Sleep(12 * time.Second)
			v.change(2)
			time.Sleep(time.Hour)
		})
	})
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newFakeVolume(t)
		v.now.Store(1)
		v.fail = func(try int) error {
			if try < 10 {
				return errors.New("no")
			}
			return nil
		}
		v.expect(t, []float64{1, 2, 4, 8, 16, 32, 64, 124, 184, 244}, func() {
			v.change(2)
			time.Sleep(time.Hour)
		})
	})
}

// A change during the backoff causes an action at once, and resets the backoff.
func TestChangeDuringBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newFakeVolume(t)
		v.now.Store(1)
		v.fail = func(int) error { return errors.New("no") }
		v.expect(t, []float64{1, 2, 4, 8, 16, 21, 22, 24, 28}, func() {
			v.change(2)
			time.Sleep(20 * time.Second)
			v.change(3)
			time.Sleep(10 * time.Second)
		})
	})
}

// An action that hangs is canceled and retried.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newFakeVolume(t)
		var took []time.Duration
		v.due = true
		v.now.Store(1)
		if !v.await(v.ctx) {
			t.Fatal("await returned false")
		}
		ctx, stop := context.WithCancel(v.ctx)
		go v.run(ctx, func(ctx context.Context) error {
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
		v := newFakeVolume(t)
		v.due = true
		go func() {
			time.Sleep(time.Hour)
			v.change(1)
		}()
		v.expect(t, []float64{3600}, func() { time.Sleep(time.Hour) })
		ended, stop := context.WithCancel(v.ctx)
		stop()
		v.now.Store(0)
		if v.await(ended) {
			t.Error("await returned true without files")
		}
	})
}

// An action that panics is retried like one that fails.
func TestActionPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newFakeVolume(t)
		v.now.Store(1)
		v.fail = func(try int) error {
			if try < 3 {
				panic("a bug")
			}
			return nil
		}
		v.expect(t, []float64{1, 2, 4}, func() {
			v.change(2)
			time.Sleep(time.Hour)
		})
	})
}

// A panic while reading the files is handled like unreadable files.
func TestReadPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newFakeVolume(t)
		v.now.Store(1)
		read := v.contents
		v.contents = func() (digest, error) {
			if v.now.Load() == 2 {
				panic("a bug")
			}
			return read()
		}
		v.expect(t, []float64{61}, func() {
			v.change(2)
			time.Sleep(time.Minute)
			v.change(3)
			time.Sleep(time.Hour)
		})
	})
}
