package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/test/reviews"
)

// slowAPIServer is a Reviewer that takes 50 ms and accepts the tokens in its table.
type slowAPIServer struct {
	tokens  map[string]issuer.Pod
	reviews atomic.Int64
	now     atomic.Int64
	most    atomic.Int64 // at a time
}

func (s *slowAPIServer) Review(ctx context.Context, token issuer.Token) (issuer.Pod, error) {
	s.reviews.Add(1)
	now := s.now.Add(1)
	defer s.now.Add(-1)
	for most := s.most.Load(); now > most && !s.most.CompareAndSwap(most, now); most = s.most.Load() {
	}
	select {
	case <-time.After(50 * time.Millisecond):
	case <-ctx.Done():
		return issuer.Pod{}, fmt.Errorf("%w: %w", issuer.Ended(ctx), ctx.Err())
	}
	if pod, known := s.tokens[token.Reveal()]; known {
		return pod, nil
	}
	return issuer.Pod{}, fmt.Errorf("%w: a test", ErrRejected)
}

var (
	here  = netip.MustParsePrefix("10.0.0.1/32")
	there = netip.MustParsePrefix("10.0.0.2/32")
)

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

func newSlow(tokens ...string) (*callers, *slowAPIServer) {
	api := &slowAPIServer{tokens: map[string]issuer.Pod{}}
	for _, token := range tokens {
		api.tokens[token] = plugin
	}
	return newCallers(api, ServiceAccount{plugin.Namespace, plugin.ServiceAccount}, reviews.Issuer), api
}

// claimed is the plugin's token with other claims.
func claimed(change func(claims map[string]any)) string {
	return reviews.Claims(plugin, "forged", change)
}

// Only a token whose claims are those of a node plugin costs a review.
func TestOnlyPluginsTokensAreReviewed(t *testing.T) {
	set := func(key string, value any) string {
		return claimed(func(c map[string]any) { c[key] = value })
	}
	kubernetes := func(key string, value any) string {
		return claimed(func(c map[string]any) { c["kubernetes.io"].(map[string]any)[key] = value })
	}
	encode := base64.RawURLEncoding.EncodeToString
	for name, token := range map[string]string{
		"nothing":                "",
		"no JSON Web Token":      "a.b.c",
		"two parts":              "a.b",
		"no base64":              "a.%%%.c",
		"no JSON":                "a." + encode([]byte("{")) + ".c",
		"a list":                 "a." + encode([]byte("[]")) + ".c",
		"deep JSON":              "a." + encode([]byte(strings.Repeat("[", 10_000))) + ".c",
		"no claims":              "a." + encode([]byte("{}")) + ".c",
		"endless":                set("x", strings.Repeat("x", maxToken)),
		"a pod":                  reviews.Token(web, "web"),
		"another subject":        set("sub", "system:serviceaccount:step-ca:default"),
		"another audience":       set("aud", []string{"https://kubernetes.default.svc"}),
		"no audience":            set("aud", nil),
		"an expired one":         set("exp", time.Now().Add(-time.Hour).Unix()),
		"no expiry":              set("exp", 0),
		"an expiry that is text": set("exp", "tomorrow"),
		"another namespace":      kubernetes("namespace", "shop"),
		"another account":        kubernetes("serviceaccount", map[string]string{"name": "default"}),
		"no pod":                 kubernetes("pod", nil),
		"no kubernetes.io":       set("kubernetes.io", nil),
		"kubernetes.io is text":  set("kubernetes.io", "plugin"),
	} {
		c, api := newSlow()
		pod, reason, err := c.identify(t.Context(), bearer(token), here)
		if err == nil || reason == "" || pod != (issuer.Pod{}) || api.reviews.Load() != 0 {
			t.Errorf("%s: pod %v, reason %q, %d reviews, error %v", name, pod, reason, api.reviews.Load(), err)
		}
		if err != nil && (len(err.Error()) > 300 || token != "" && strings.Contains(err.Error(), token)) {
			t.Errorf("%s: the error contains the token: %v", name, err)
		}
	}
	c, api := newSlow(pluginToken)
	if pod, _, err := c.identify(t.Context(), bearer(pluginToken), here); err != nil || pod != plugin || api.reviews.Load() != 1 {
		t.Errorf("the plugin: pod %v, %d reviews, error %v", pod, api.reviews.Load(), err)
	}
	if _, _, err := c.identify(t.Context(), http.Header{"Authorization": {"Bearer " + pluginToken, "Bearer " + pluginToken}}, here); err == nil {
		t.Error("two tokens are accepted")
	}
}

// A burst of calls costs one review of the caller. A review is kept for at most ten
// seconds, and no longer than the token is valid.
func TestReviewOfACallerIsKept(t *testing.T) {
	for name, test := range map[string]struct{ validFor, kept time.Duration }{
		"a token that is valid for long": {time.Hour, keepReview},
		"a token that expires soon":      {4 * time.Second, 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { checkKept(t, test.validFor, test.kept) })
		})
	}
}

func checkKept(t *testing.T, validFor, kept time.Duration) {
	token := claimed(func(c map[string]any) { c["exp"] = time.Now().Add(validFor).Unix() })
	c, api := newSlow(token)
	identify := func() error {
		_, _, err := c.identify(t.Context(), bearer(token), here)
		return err
	}
	begin := time.Now()
	var burst sync.WaitGroup
	for range 100 {
		burst.Go(func() {
			if err := identify(); err != nil {
				t.Error(err)
			}
		})
	}
	burst.Wait()
	time.Sleep(kept - 100*time.Millisecond)
	if err := identify(); err != nil || api.reviews.Load() != 1 {
		t.Errorf("%d reviews, error %v", api.reviews.Load(), err)
	}
	delete(api.tokens, token) // the API server now rejects it
	time.Sleep(200 * time.Millisecond)
	if err := identify(); err == nil || api.reviews.Load() != 2 {
		t.Errorf("%s after the first review: %d reviews, error %v", time.Since(begin), api.reviews.Load(), err)
	}
}

// A call that ends does not take the review with it that other calls wait for.
func TestReviewOutlivesTheCallThatBeganIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, api := newSlow(pluginToken)
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error)
		go func() {
			_, _, err := c.identify(ctx, bearer(pluginToken), here)
			first <- err
		}()
		synctest.Wait()
		second := make(chan error)
		go func() {
			_, _, err := c.identify(t.Context(), bearer(pluginToken), here)
			second <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-first; issuer.OutcomeOf(err) != issuer.Canceled {
			t.Error(err)
		}
		if err := <-second; err != nil || api.reviews.Load() != 1 {
			t.Errorf("%d reviews, error %v", api.reviews.Load(), err)
		}
	})
}

// guessed is a node plugin's pod for who does not know the UID of one.
var guessed = issuer.Pod{Namespace: plugin.Namespace, Name: plugin.Name, UID: "guessed", ServiceAccount: plugin.ServiceAccount, Node: plugin.Node}

// forge sends forged tokens that look like a plugin's from the address, at once and
// again and again, until the context ends.
func forge(ctx context.Context, c *callers, address netip.Prefix) {
	for sender := range 40 { // more than can wait
		go func() {
			for n := 0; ctx.Err() == nil; n++ {
				token := reviews.Token(guessed, fmt.Sprint(address, sender, n))
				if _, reason, _ := c.identify(ctx, bearer(token), address); reason == rejectedRate {
					time.Sleep(100 * time.Millisecond)
				}
			}
		}()
	}
}

// Forged tokens from ten addresses delay neither a node whose token is known nor a new
// one, and cost few reviews.
func TestForgedTokensDelayNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fresh := reviews.Token(guessed, "fresh")
		c, api := newSlow(pluginToken, fresh)
		c.rejections = newLimiter(Limit{1e9, 1e9}) // as if there were a thousand addresses
		identify := func(token string) time.Duration {
			begin := time.Now()
			if _, _, err := c.identify(t.Context(), bearer(token), here); err != nil {
				t.Error(err)
			}
			return time.Since(begin)
		}
		identify(pluginToken)
		ctx, stop := context.WithCancel(t.Context())
		for n := range 10 {
			forge(ctx, c, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(n)}), 32))
		}
		time.Sleep(keepReview + time.Second)
		if took := identify(pluginToken); took > 50*time.Millisecond {
			t.Errorf("a known token waited until it was reviewed after %s", took)
		}
		// A turn of each of the other addresses, five at a time.
		if took := identify(fresh); took > 200*time.Millisecond {
			t.Errorf("a new token waited until it was reviewed after %s", took)
		}
		if most := api.most.Load(); most > knownReviews+strangersReviews {
			t.Errorf("%d reviews at a time", most)
		}
		stop()
		time.Sleep(time.Minute)
	})
}

// An address gets few reviews for tokens that are then rejected. A node plugin's pod
// that was accepted before is not affected, from whichever address and with whichever
// token: the kubelet brings a new one each hour.
func TestRejectedTokensOfAnAddressAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fresh, rotated := reviews.Token(guessed, "fresh"), reviews.Token(plugin, "rotated")
		c, api := newSlow(pluginToken, fresh, rotated)
		if _, _, err := c.identify(t.Context(), bearer(pluginToken), here); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		forge(ctx, c, here)
		time.Sleep(time.Minute)
		if most := int64(rejectionsRate.Burst+strangersReviews) + int64(rejectionsRate.Rate*60); api.reviews.Load() > most {
			t.Errorf("%d reviews in a minute, want at most %d", api.reviews.Load(), most)
		}
		for _, token := range []string{pluginToken, rotated} {
			if _, _, err := c.identify(t.Context(), bearer(token), here); err != nil {
				t.Error(err)
			}
		}
		if _, _, err := c.identify(t.Context(), bearer(fresh), there); err != nil {
			t.Error(err)
		}
		stop()
		time.Sleep(time.Minute)
		if _, _, err := c.identify(t.Context(), bearer(fresh), here); err != nil {
			t.Errorf("after the attack: %v", err)
		}
	})
}

// Tokens of another issuer are reviewed now and then, so that the server learns when
// the API server gets another issuer.
func TestTokensOfAnotherIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		of := func(name string) string {
			return reviews.Claims(plugin, name, func(c map[string]any) { c["iss"] = "https://new.example" })
		}
		c, api := newSlow(of("good"))
		for n := range 1000 {
			_, _, _ = c.identify(t.Context(), bearer(of(fmt.Sprint(n))), here)
			time.Sleep(time.Millisecond)
		}
		if asked := api.reviews.Load(); asked > int64(otherIssuersRate.Burst)+2 {
			t.Errorf("%d reviews", asked)
		}
		time.Sleep(time.Minute)
		if _, _, err := c.identify(t.Context(), bearer(of("good")), there); err != nil {
			t.Fatal(err)
		}
		for n := range 20 { // learned
			api.tokens[of(fmt.Sprint("node-", n))] = plugin
			if _, _, err := c.identify(t.Context(), bearer(of(fmt.Sprint("node-", n))), there); err != nil {
				t.Error(err)
			}
		}
	})
}

// What is remembered of callers is bounded.
func TestRememberedCallersAreBounded(t *testing.T) {
	c, _ := newSlow()
	said := claims{Expiry: time.Now().Add(time.Hour).Unix()}
	for n := range maxCallers + 1000 {
		said.Issuer = fmt.Sprint("https://", n)
		pod := plugin
		pod.UID = fmt.Sprint(n)
		c.remember(tokenHash{byte(n), byte(n >> 8), byte(n >> 16)}, said, pod)
	}
	if len(c.accepted) > maxCallers || len(c.pods) > maxCallers || len(c.issuers) > 16 {
		t.Errorf("%d tokens, %d issuers", len(c.accepted), len(c.issuers))
	}
}

// The API server does not answer: the call fails as unavailable, and is no rejection.
func TestReviewWithoutAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newSlow()
		c.reviewer = hangingReviewer{}
		_, reason, err := c.identify(t.Context(), bearer(pluginToken), here)
		if issuer.OutcomeOf(err) != issuer.Unavailable || reason != rejectedUnavailable || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("reason %q, error %v", reason, err)
		}
	})
}

// hangingReviewer is an API server that does not answer.
type hangingReviewer struct{}

func (hangingReviewer) Review(ctx context.Context, _ issuer.Token) (issuer.Pod, error) {
	<-ctx.Done()
	return issuer.Pod{}, fmt.Errorf("%w: %w", issuer.Unavailable, ctx.Err())
}
