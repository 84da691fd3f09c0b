package reload

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

// scene is a loop whose contents change as a test says, and what it has done, in
// seconds from the start.
type scene struct {
	*loop
	ctx     context.Context
	now     atomic.Int32
	changes chan struct{}
	begin   time.Time
	acted   []float64
	fail    func(try int) error
}

func newScene(t *testing.T) *scene {
	s := &scene{ctx: klog.NewContext(t.Context(), logr.Discard()), changes: make(chan struct{}, 1), begin: time.Now()}
	s.loop = &loop{
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

func (s *scene) change(to int32) {
	s.now.Store(to)
	select {
	case s.changes <- struct{}{}:
	default:
	}
}

func (s *scene) act(context.Context) error {
	s.acted = append(s.acted, time.Since(s.begin).Seconds())
	if s.fail != nil {
		return s.fail(len(s.acted))
	}
	return nil
}

// play runs the loop while the test does something, and compares.
func (s *scene) play(t *testing.T, want []float64, during func()) {
	t.Helper()
	if !s.await(s.ctx) {
		t.Fatal("nothing is there")
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
		s := newScene(t)
		s.now.Store(1)
		s.play(t, []float64{11}, func() {
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

// Changes without an end do not put it off for ever.
func TestChangesAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		s.now.Store(1)
		s.play(t, []float64{1, 2, 3}, func() {
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

func TestTouchedIsNotChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		s.now.Store(1)
		s.play(t, nil, func() {
			for range 10 {
				s.changes <- struct{}{}
				time.Sleep(time.Minute)
			}
		})
	})
}

func TestGoneAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		s.now.Store(1)
		s.play(t, []float64{7213}, func() {
			s.change(0)
			time.Sleep(time.Hour)
			s.change(1) // as it was
			time.Sleep(time.Hour)
			s.change(0)
			time.Sleep(12 * time.Second)
			s.change(2)
			time.Sleep(time.Hour)
		})
	})
}

func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		s.now.Store(1)
		s.fail = func(try int) error {
			if try < 10 {
				return errors.New("no")
			}
			return nil
		}
		s.play(t, []float64{1, 2, 4, 8, 16, 32, 64, 124, 184, 244}, func() {
			s.change(2)
			time.Sleep(time.Hour)
		})
	})
}

// What is newer is told at once, and its pauses begin anew.
func TestNewerThanWhatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		s.now.Store(1)
		s.fail = func(int) error { return errors.New("no") }
		s.play(t, []float64{1, 2, 4, 8, 16, 21, 22, 24, 28}, func() {
			s.change(2)
			time.Sleep(20 * time.Second)
			s.change(3)
			time.Sleep(10 * time.Second)
		})
	})
}

// A command that hangs is ended, and tried again.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		var took []time.Duration
		s.due = true
		s.now.Store(1)
		if !s.await(s.ctx) {
			t.Fatal("nothing is there")
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
		s := newScene(t)
		s.due = true
		go func() {
			time.Sleep(time.Hour)
			s.change(1)
		}()
		s.play(t, []float64{3600}, func() { time.Sleep(time.Hour) })
		ended, stop := context.WithCancel(s.ctx)
		stop()
		s.now.Store(0)
		if s.await(ended) {
			t.Error("there is nothing")
		}
	})
}
