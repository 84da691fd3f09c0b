package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strconv"

	"google.golang.org/grpc/grpclog"
	"k8s.io/klog/v2"
)

// logFormat is the value of the flag --logging-format: text or json.
type logFormat string

const (
	logText logFormat = "text"
	logJSON logFormat = "json"
)

// String implements flag.Value.
func (f *logFormat) String() string { return string(*f) }

// Set implements flag.Value.
func (f *logFormat) Set(text string) error {
	switch format := logFormat(text); format {
	case logText, logJSON:
		*f = format
		return nil
	}
	return fmt.Errorf("the formats are %s and %s", logText, logJSON)
}

// setUpLogs makes klog write lines of this format and up to this verbosity. It must be
// called before the first log line, and before goroutines are started.
func setUpLogs(format logFormat, verbosity int, stderr io.Writer) error {
	// klog gets flags of its own: a library has registered glog's -v with the
	// process's flags.
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	if err := flags.Set("v", strconv.Itoa(verbosity)); err != nil {
		return err
	}
	if format != logJSON {
		return nil
	}
	handler := slog.NewJSONHandler(stderr, &slog.HandlerOptions{
		AddSource:   true,
		Level:       slog.Level(-verbosity), // V(4) of klog is the level -4 of slog
		ReplaceAttr: logAttribute,
	})
	klog.SetSlogLogger(slog.New(handler))
	// Package log, by which net/http reports what has no other way, writes to slog, too.
	slog.SetDefault(slog.New(handler))
	// gRPC would write its errors to stderr as text.
	errors := slog.NewLogLogger(handler, slog.LevelError).Writer()
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, errors))
	return nil
}

// logAttribute gives an attribute of a JSON line the text that it has in a text line,
// where JSON would show the inside of a value, or a number without its unit.
func logAttribute(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 {
		switch value := a.Value.Any().(type) {
		case slog.Level:
			if a.Key == slog.LevelKey && value < slog.LevelInfo {
				return slog.String(a.Key, "DEBUG")
			}
		case *slog.Source:
			if a.Key == slog.SourceKey {
				if value == nil || value.File == "" { // of package log
					return slog.Attr{}
				}
				return slog.String("caller", filepath.Base(value.File)+":"+strconv.Itoa(value.Line))
			}
		}
	}
	switch a.Value.Kind() {
	case slog.KindDuration:
		return slog.String(a.Key, a.Value.Duration().String())
	case slog.KindAny:
		value := a.Value.Any()
		switch value.(type) {
		case slog.Level, error, json.Marshaler:
			return a
		case fmt.Formatter, fmt.Stringer:
			return slog.String(a.Key, fmt.Sprint(value))
		}
	}
	return a
}
