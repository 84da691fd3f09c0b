package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/flexstack/step-csi/issuer"
)

// maxToken bounds a token, in bytes. The tokens of Kubernetes have about 1.5 KiB.
const maxToken = 16 << 10

// callerToken returns the caller's own token, from the call's metadata.
func callerToken(ctx context.Context) (issuer.Token, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) != 1 {
		return issuer.Token{}, fmt.Errorf("%w: the caller's token: there is none", issuer.CallerRejected)
	}
	text, bearer := strings.CutPrefix(values[0], "Bearer ")
	if !bearer {
		return issuer.Token{}, fmt.Errorf("%w: the caller's token: it is not a bearer token", issuer.CallerRejected)
	}
	token := issuer.NewToken(text, time.Time{})
	if err := checkToken(token); err != nil {
		return issuer.Token{}, fmt.Errorf("%w: the caller's token: %w", issuer.CallerRejected, err)
	}
	return token, nil
}

// checkToken rejects what cannot be a JSON Web Token, without a call to the API
// server.
func checkToken(t issuer.Token) error {
	text := t.Reveal()
	if len(text) > maxToken || strings.Count(text, ".") != 2 || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("%w: it is not a JSON Web Token", ErrRejected)
	}
	return nil
}

// reviewCaller returns the node plugin's pod, whose token it is. It rejects every
// other caller, and the calls of a node that exceeds its rate limit.
func (s *Server) reviewCaller(ctx context.Context, token issuer.Token) (issuer.Pod, error) {
	caller, err := s.reviewer.Review(ctx, token)
	switch {
	case errors.Is(err, ErrRejected):
		return issuer.Pod{}, fmt.Errorf("%w: the caller's token: %w", issuer.CallerRejected, err)
	case err != nil:
		return issuer.Pod{}, fmt.Errorf("the caller's token: %w", err)
	case !s.isPlugin(caller):
		return caller, fmt.Errorf("%w: the caller is service account %s/%s, the node plugins are %s",
			errNotPlugin, caller.Namespace, caller.ServiceAccount, s.plugin)
	case !s.nodes.allow(caller.Node):
		return caller, fmt.Errorf("%w: %s; authority.limits.node sets the limit", errTooManyOfNode, caller.Node)
	}
	return caller, nil
}

func (s *Server) isPlugin(pod issuer.Pod) bool {
	return ServiceAccount{pod.Namespace, pod.ServiceAccount} == s.plugin
}
