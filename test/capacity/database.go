package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/flexstack/step-csi/test/loopback"
	"github.com/flexstack/step-csi/test/realca"
)

// database starts one kind of database below a directory.
type database struct {
	title string
	start func(directory string) (server, error)
}

// server is a database, as step-ca uses it.
type server struct {
	configuration map[string]any // "db" in ca.json
	size          func() (int64, error)
	empty         func() error // while the CA is down
	stop          func() error
}

var databases = []database{
	{"badger", func(directory string) (server, error) {
		path := realca.DatabaseDirectory(directory)
		return inFiles(map[string]any{"type": "badgerv2", "dataSource": path}, path), nil
	}},
	{"bbolt", func(directory string) (server, error) {
		path := filepath.Join(directory, "bbolt.db")
		return inFiles(map[string]any{"type": "bbolt", "dataSource": path}, path), nil
	}},
	{"PostgreSQL", startPostgreSQL},
}

func inFiles(configuration map[string]any, path string) server {
	return server{
		configuration: configuration,
		size:          func() (int64, error) { return sizeOfFiles(path) },
		empty:         func() error { return os.RemoveAll(path) },
		stop:          func() error { return nil },
	}
}

func sizeOfFiles(path string) (total int64, err error) {
	err = filepath.WalkDir(path, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}

func startPostgreSQL(directory string) (server, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(found) == 0 {
		return server{}, errors.New("PostgreSQL is not installed; on Debian or Ubuntu: apt-get install --no-install-recommends postgresql")
	}
	address, err := loopback.Address(loopback.IP)
	if err != nil {
		return server{}, err
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return server{}, err
	}
	programs := found[len(found)-1]
	data := filepath.Join(directory, "data")
	if err := runAs("postgres", directory, filepath.Join(programs, "initdb"), "--auth=trust", "--username=postgres", "--no-sync", data); err != nil {
		return server{}, err
	}
	stop, err := keepAs("postgres", directory, port, filepath.Join(programs, "postgres"), "-D", data, "-h", "127.0.0.1", "-p", port, "-k", directory)
	if err != nil {
		return server{}, err
	}
	query := func(text string) (string, error) {
		out, err := exec.Command(filepath.Join(programs, "psql"), "-h", "127.0.0.1", "-p", port, "-U", "postgres", "-d", "stepca", "-Atc", text).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("psql: %w: %s", err, out)
		}
		return strings.TrimSpace(string(out)), err
	}
	return server{
		configuration: map[string]any{"type": "postgresql", "dataSource": "postgresql://postgres@127.0.0.1:" + port + "/", "database": "stepca"},
		stop:          stop,
		size: func() (int64, error) {
			out, err := query("SELECT pg_database_size('stepca')")
			if err != nil {
				return 0, err
			}
			return strconv.ParseInt(out, 10, 64)
		},
		empty: func() error {
			_, err := query("TRUNCATE used_ott, x509_certs, x509_certs_data")
			return err
		},
	}, nil
}

// runAs runs a program as another user, to whom the directory is given.
func runAs(name, directory, program string, args ...string) error {
	command, err := commandAs(name, directory, program, args...)
	if err != nil {
		return err
	}
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(program), err, out)
	}
	return nil
}

// keepAs starts a server as another user, and waits until it listens.
func keepAs(name, directory, port, program string, args ...string) (stop func() error, err error) {
	command, err := commandAs(name, directory, program, args...)
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	stop = func() error { return errors.Join(command.Process.Signal(syscall.SIGTERM), command.Wait()) }
	for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(50 * time.Millisecond) {
		if connection, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			return stop, connection.Close()
		}
	}
	return nil, errors.Join(fmt.Errorf("%s does not listen", filepath.Base(program)), stop())
}

func commandAs(name, directory, program string, args ...string) (*exec.Cmd, error) {
	account, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.Atoi(account.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.Atoi(account.Gid)
	if err != nil {
		return nil, err
	}
	command := exec.Command(program, args...)
	command.Dir = directory
	command.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, Pdeathsig: syscall.SIGKILL,
	}
	return command, os.Chown(directory, uid, gid)
}
