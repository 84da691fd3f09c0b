// Vulncheck looks for known vulnerabilities in the programs, with govulncheck. Where the
// database cannot be reached, it says so and succeeds: machines without a network can
// still run make lint. A vulnerability is a failure.
package main

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// checkTimeout bounds a check that a database began to answer and then does not.
const checkTimeout = 15 * time.Minute

// check is what to check, with which database.
type check struct {
	database string // its URL: https, http or file
	// reachable is how long the database has to answer the first request.
	reachable       time.Duration
	directory, tags string
	packages        []string
}

func main() {
	var c check
	flag.StringVar(&c.database, "db", "https://vuln.go.dev", "`URL` of the database; also file:///path")
	flag.DurationVar(&c.reachable, "timeout", 5*time.Second, "how long to wait until the database answers")
	flag.StringVar(&c.directory, "C", ".", "`DIR` of the module")
	flag.StringVar(&c.tags, "tags", "", "build tags")
	flag.Parse()
	c.packages = flag.Args()
	os.Exit(c.run(os.Stdout))
}

// run returns the exit status.
func (c check) run(out io.Writer) int {
	if err := c.reach(); err != nil {
		fmt.Fprintf(out, "NOT CHECKED for known vulnerabilities: the database %s cannot be reached: %v\n"+
			"Run make lint where it can, or set VULNDB to the URL of a copy, such as file:///path.\n", c.database, err)
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	program, err := exec.CommandContext(ctx, "go", "tool", "-n", "govulncheck").Output()
	if err != nil {
		fmt.Fprintln(out, "build govulncheck:", err)
		return 1
	}
	args := append([]string{"-C", c.directory, "-db", c.database, "-tags", c.tags}, c.packages...)
	command := exec.CommandContext(ctx, strings.TrimSpace(string(program)), args...)
	command.Stdout, command.Stderr = out, out
	if err := command.Run(); err != nil {
		fmt.Fprintln(out, "govulncheck:", err)
		return 1
	}
	return 0
}

// reach returns an error if a database on the network does not answer as one.
func (c check) reach() error {
	if !strings.HasPrefix(c.database, "http") {
		return nil // govulncheck reads the directory, or says what is wrong with it
	}
	client := http.Client{Timeout: c.reachable} // includes reading the body
	response, err := client.Get(strings.TrimSuffix(c.database, "/") + "/index/db.json.gz")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("HTTP %s", response.Status)
	}
	var index struct {
		Modified time.Time `json:"modified"`
	}
	body, err := gzip.NewReader(response.Body)
	if err == nil {
		err = json.NewDecoder(body).Decode(&index)
	}
	if err != nil || index.Modified.IsZero() {
		return errors.Join(errors.New("the answer is not that of a vulnerability database, perhaps that of a proxy"), err)
	}
	return nil
}
