package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/flexstack/step-csi/issuer/panics"
)

const (
	// scrapeInterval is the shortest time between two collections of the metrics. Within
	// it, all scrapes get the same answer, so that frequent scrapes cost little, and
	// clients that read slowly hold at most a few answers.
	scrapeInterval = time.Second
	// scrapeTimeout is how long a scrape waits for a collection in progress.
	scrapeTimeout = 5 * time.Second
)

// exposition serves the metrics in the text format of Prometheus. At most one goroutine
// collects them at a time.
type exposition struct {
	metrics prometheus.Gatherer
	turn    chan struct{} // holds an element while a request uses latest
	latest  scrape
}

func newExposition(metrics prometheus.Gatherer) *exposition {
	return &exposition{metrics: metrics, turn: make(chan struct{}, 1)}
}

// scrape is one collection. Its texts do not change: responses share them.
type scrape struct {
	at         time.Time
	text, gzip []byte // gzip is empty until a client accepts it
	err        error
}

// ServeHTTP implements http.Handler.
func (e *exposition) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	waiting, cancel := context.WithTimeout(r.Context(), scrapeTimeout)
	defer cancel()
	select {
	case e.turn <- struct{}{}:
	case <-waiting.Done():
		http.Error(w, "another scrape is in progress", http.StatusServiceUnavailable)
		return
	}
	text, encoding, err := e.encode(r)
	<-e.turn
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	header := w.Header()
	header.Set("Content-Type", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
	header.Set("Content-Length", strconv.Itoa(len(text)))
	if encoding != "" {
		header.Set("Content-Encoding", encoding)
	}
	_, _ = w.Write(text) // the client may have gone
}

// encode returns the metrics in an encoding that the client accepts. It requires the
// turn.
func (e *exposition) encode(r *http.Request) (text []byte, encoding string, err error) {
	defer panics.Recover(r.Context(), "scrape", &err)
	if e.latest.at.IsZero() || time.Since(e.latest.at) >= scrapeInterval {
		e.latest = collect(e.metrics)
	}
	if e.latest.err != nil || !acceptsGzip(r) {
		return e.latest.text, "", e.latest.err
	}
	if e.latest.gzip == nil {
		if e.latest.gzip, err = compress(e.latest.text); err != nil {
			return nil, "", err
		}
	}
	return e.latest.gzip, "gzip", nil
}

func collect(metrics prometheus.Gatherer) scrape {
	s := scrape{at: time.Now()}
	families, err := metrics.Gather()
	if err != nil {
		s.err = fmt.Errorf("collect the metrics: %w", err)
		return s
	}
	var text bytes.Buffer
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&text, family); err != nil {
			s.err = fmt.Errorf("encode the metrics: %w", err)
			return s
		}
	}
	s.text = text.Bytes()
	return s
}

func compress(text []byte) ([]byte, error) {
	var compressed bytes.Buffer
	w, err := gzip.NewWriterLevel(&compressed, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return compressed.Bytes(), nil
}

// acceptsGzip tells whether the client names gzip without a condition. Clients that only
// accept it with a quality get plain text.
func acceptsGzip(r *http.Request) bool {
	for _, line := range r.Header.Values("Accept-Encoding") {
		for encoding := range strings.SplitSeq(line, ",") {
			if strings.TrimSpace(encoding) == "gzip" {
				return true
			}
		}
	}
	return false
}
