package main

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// slowGatherer takes a while for each collection, and counts them.
type slowGatherer struct {
	prometheus.Gatherer
	took        time.Duration
	err         error
	collections int
}

func (g *slowGatherer) Gather() ([]*dto.MetricFamily, error) {
	g.collections++ // the race detector notices collections at the same time
	time.Sleep(g.took)
	families, err := g.Gatherer.Gather()
	return families, errors.Join(err, g.err)
}

func newSlowGatherer(took time.Duration) *slowGatherer {
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "answer", Help: "answer"}, func() float64 { return 42 }))
	return &slowGatherer{Gatherer: registry, took: took}
}

func scrapeOnce(ctx context.Context, h http.Handler, encoding string) *httptest.ResponseRecorder {
	request := httptest.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil)
	request.Header.Set("Accept-Encoding", encoding)
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, request)
	return answer
}

// However many scrapes there are, the metrics are collected once a second, and not by two
// at the same time.
func TestScrapesShareACollection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newSlowGatherer(100 * time.Millisecond)
		e := newExposition(g)
		for second := range 3 {
			var scrapes sync.WaitGroup
			for range 200 {
				scrapes.Go(func() {
					if answer := scrapeOnce(t.Context(), e, ""); answer.Code != http.StatusOK || !strings.Contains(answer.Body.String(), "\nanswer 42\n") {
						t.Errorf("%d: %s", answer.Code, answer.Body)
					}
				})
			}
			scrapes.Wait()
			if g.collections != second+1 {
				t.Errorf("%d collections in %d s", g.collections, second+1)
			}
			time.Sleep(scrapeInterval)
		}
	})
}

// While a collection hangs, other scrapes end: those whose client has gone at once, and
// all others after a while.
func TestScrapeBehindAHangingOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newSlowGatherer(time.Hour)
		e := newExposition(g)
		go scrapeOnce(t.Context(), e, "")
		synctest.Wait()
		gone, leave := context.WithCancel(t.Context())
		leave()
		began := time.Now()
		if answer := scrapeOnce(gone, e, ""); answer.Code != http.StatusServiceUnavailable || time.Since(began) != 0 {
			t.Errorf("%d after %s", answer.Code, time.Since(began))
		}
		if answer := scrapeOnce(t.Context(), e, ""); answer.Code != http.StatusServiceUnavailable || time.Since(began) != scrapeTimeout {
			t.Errorf("%d after %s", answer.Code, time.Since(began))
		}
		time.Sleep(time.Hour)
		g.took = 0
		if answer := scrapeOnce(t.Context(), e, ""); answer.Code != http.StatusOK {
			t.Errorf("after the end of the collection: %d", answer.Code)
		}
	})
}

// An error is the answer until the next collection.
func TestScrapeFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newSlowGatherer(0)
		g.err = errors.New("two series with the same labels")
		e := newExposition(g)
		for range 2 {
			if answer := scrapeOnce(t.Context(), e, "gzip"); answer.Code != http.StatusInternalServerError || !strings.Contains(answer.Body.String(), "same labels") {
				t.Errorf("%d: %s", answer.Code, answer.Body)
			}
		}
		g.err = nil
		time.Sleep(scrapeInterval)
		if answer := scrapeOnce(t.Context(), e, ""); answer.Code != http.StatusOK || g.collections != 2 {
			t.Errorf("%d after %d collections", answer.Code, g.collections)
		}
	})
}

// panicking is a Gatherer with a defect.
type panicking struct{ prometheus.Gatherer }

func (panicking) Gather() ([]*dto.MetricFamily, error) { panic("no metrics") }

// A panic ends one scrape, and not those after it.
func TestScrapePanics(t *testing.T) {
	e := newExposition(panicking{})
	for range 2 {
		if answer := scrapeOnce(t.Context(), e, ""); answer.Code != http.StatusInternalServerError || strings.Contains(answer.Body.String(), "no metrics") {
			t.Errorf("%d: %s", answer.Code, answer.Body)
		}
	}
}

func TestCompressedScrape(t *testing.T) {
	e := newExposition(newSlowGatherer(0))
	for accepted, compressed := range map[string]bool{"": false, "gzip": true, "deflate, gzip": true, "gzip;q=0": false, "zstd": false} {
		answer := scrapeOnce(t.Context(), e, accepted)
		var body io.Reader = answer.Body
		if compressed != (answer.Header().Get("Content-Encoding") == "gzip") {
			t.Errorf("%q: %v", accepted, answer.Header())
		}
		if compressed {
			var err error
			if body, err = gzip.NewReader(body); err != nil {
				t.Fatal(err)
			}
		}
		text, err := io.ReadAll(body)
		if err != nil || !strings.Contains(string(text), "\nanswer 42\n") {
			t.Errorf("%q: %q, %v", accepted, text, err)
		}
	}
}
