package reload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// forwarded are the signals that programs are sent from outside.
var forwarded = []os.Signal{
	unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH, unix.SIGCONT,
}

func lookPath(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return "", fmt.Errorf("start the program: %w", err)
	}
	return path, nil
}

// wrap starts the program, has its reloading begun, and returns what it exits
// with. Signals to this process are signals to it, also the one that ends ctx.
func (c Config) wrap(ctx context.Context, begin func(action)) error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded...)
	if ctx.Err() != nil { // it came before
		signal.Stop(signals)
		return nil
	}
	program, err := start(c.Program, nil)
	if err != nil {
		signal.Stop(signals)
		return err
	}
	var forwarding sync.WaitGroup
	forwarding.Go(func() {
		for s := range signals {
			_ = program.Signal(s) // it may have ended
		}
	})
	begin(c.action(program))
	err = wait(program.Pid)
	signal.Stop(signals)
	close(signals)
	forwarding.Wait()
	return err
}
