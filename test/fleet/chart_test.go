package fleet

import (
	_ "embed"
	"fmt"
	"io"
	"math"
	"strings"
	"text/template"
	"time"
)

// The sizes of a chart, in pixels.
const (
	left, right = 70.0, 20.0
	across      = 760.0
	plot        = 200.0
	header      = 76.0
	below       = 66.0
	points      = 380 // of a line
)

// top is the largest rate on the logarithmic axis; the smallest is 1.
const top = 10_000

//go:embed chart.svg.tmpl
var chartTemplate string

var chart = template.Must(template.New("chart").Parse(chartTemplate))

// panel is a part of the scenario's time that the chart shows.
type panel struct {
	span
	unit string
	of   time.Duration // the unit
}

// hours shows the whole time.
func hours(f *fleet) []panel { return []panel{{span{0, f.now()}, "hours", time.Hour}} }

func minutes(f *fleet, from, to time.Duration) panel {
	return panel{span{from, min(to, f.now())}, "minutes", time.Minute}
}

// aroundTheEnd shows the whole time, and the time around the end of the outage.
func aroundTheEnd(f *fleet) []panel {
	back := f.away[0].to
	return append(hours(f), minutes(f, back-5*time.Minute, back+25*time.Minute))
}

type mark struct {
	At   string
	Name string
}

type line struct{ Class, Points string }

type area struct{ X, Width, Text, Name string }

type key struct {
	Class, Name, X, End, Text string
}

type drawnPanel struct {
	Top   float64
	X, Y  []mark
	Away  []area
	Lines []line
	Limit string
	Unit  string
}

// draw writes the chart of a scenario, from the fleet's state after the run.
func (s scenario) draw(w io.Writer, f *fleet, panels []panel) error {
	lines := []struct {
		class, name string
		rate        *rate
		value       func([]int32) float64
	}{
		{"most", "asked for, most in 1 s", &f.authority.asked, func(slots []int32) float64 { return float64(most(slots, time.Second)) }},
		{"asked", "asked for, mean", &f.authority.asked, mean},
		{"signed", "signed, mean", &f.ca.signed, mean},
	}
	if sum(f.authority.asked.slots) == 0 {
		lines[0].rate, lines[0].name = &f.authority.rooted, "roots asked for, most in 1 s"
		lines[1].rate, lines[1].name = &f.authority.rooted, "roots asked for, mean"
		lines[2].name = "certificates signed: none"
	}
	var legend []key
	for i, l := range lines {
		x := left + float64(i)*230
		legend = append(legend, key{l.class, l.name, pixel(x), pixel(x + 22), pixel(x + 28)})
	}
	var drawn []drawnPanel
	for i, p := range panels {
		d := drawnPanel{Top: header + float64(i)*(plot+below), Unit: p.unit, Limit: height(capacity)}
		for rate := 1; rate <= top; rate *= 10 {
			d.Y = append(d.Y, mark{height(float64(rate)), grouped(rate)})
		}
		for at := p.from; at <= p.to; at += p.step() {
			d.X = append(d.X, mark{p.x(at), fmt.Sprint(math.Round(float64(at) / float64(p.of)))})
		}
		for _, away := range f.away {
			from, to := max(away.from, p.from), min(away.to, p.to)
			d.Away = append(d.Away, area{p.x(from), pixel(across * float64(to-from) / float64(p.to-p.from)), p.x((from + to) / 2), away.missing})
		}
		for _, l := range lines {
			d.Lines = append(d.Lines, line{l.class, p.line(l.rate, l.value)})
		}
		drawn = append(drawn, d)
	}
	return chart.Execute(w, map[string]any{
		"Title": s.title, "Width": left + across + right, "Height": header + float64(len(panels))*(plot+below) - 20,
		"Left": left, "Across": across, "Plot": plot, "Middle": plot / 2, "Legend": legend, "Panels": drawn,
	})
}

// mean is the mean number of calls per second.
func mean(slots []int32) float64 {
	return float64(sum(slots)) / (slot * time.Duration(len(slots))).Seconds()
}

// step is the time between two marks on the time axis.
func (p panel) step() time.Duration {
	for _, n := range []time.Duration{1, 2, 5, 10} {
		if (p.to-p.from)/(n*p.of) <= 16 {
			return n * p.of
		}
	}
	return 20 * p.of
}

func (p panel) x(at time.Duration) string {
	return pixel(across * float64(at-p.from) / float64(p.to-p.from))
}

func (p panel) line(r *rate, value func([]int32) float64) string {
	var all strings.Builder
	width := max((p.to-p.from)/points, time.Second)
	for at := p.from; at < p.to; at += width {
		slots := make([]int32, width/slot) // includes slots without calls
		copy(slots, r.within(span{at, at + width}))
		fmt.Fprintf(&all, "%s,%s ", p.x(at+width/2), height(value(slots)))
	}
	return strings.TrimSpace(all.String())
}

// height is the position of a rate on the axis.
func height(rate float64) string {
	return pixel(plot * (1 - math.Log(min(max(rate, 1), top))/math.Log(top)))
}

func pixel(x float64) string { return fmt.Sprint(math.Round(x*10) / 10) }
