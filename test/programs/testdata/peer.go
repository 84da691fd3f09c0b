// Command peer is a TLS server and client with the files of a volume.
//
//	go run peer.go server DIRECTORY PORT
//	go run peer.go client DIRECTORY PORT SERVER-NAME
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"sync"
)

func main() {
	mode, directory, address := os.Args[1], os.Args[2], net.JoinHostPort("127.0.0.1", os.Args[3])
	var err error
	if mode == "server" {
		err = serve(directory, address)
	} else {
		err = call(directory, address, os.Args[4])
	}
	if err != nil {
		log.Fatal(err)
	}
}

// files are a volume's certificate, key and roots, all from the same renewal.
type files struct {
	certificate tls.Certificate
	roots       *x509.CertPool
}

func readFiles(directory string) (*files, error) {
	set, err := filepath.EvalSymlinks(filepath.Join(directory, "..data"))
	if err != nil {
		return nil, err
	}
	certificate, err := tls.LoadX509KeyPair(filepath.Join(set, "tls.crt"), filepath.Join(set, "tls.key"))
	if err != nil {
		return nil, err
	}
	encoded, err := os.ReadFile(filepath.Join(set, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(encoded) {
		return nil, fmt.Errorf("no certificate in %s/ca.crt", set)
	}
	return &files{certificate, roots}, nil
}

// volume reads the files of a directory again when they have changed.
type volume struct {
	directory string

	mu      sync.Mutex
	version string
	current *files
}

func (v *volume) newest() (*files, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	version, err := os.Readlink(filepath.Join(v.directory, "..data"))
	if err == nil && version != v.version {
		var f *files
		if f, err = readFiles(v.directory); err == nil {
			v.version, v.current = version, f
		}
	}
	if err != nil && v.current != nil {
		log.Printf("keeping the previous certificate: %v", err)
		return v.current, nil
	}
	return v.current, err
}

// serverConfig uses the newest files for each handshake.
func (v *volume) serverConfig() *tls.Config {
	return &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		f, err := v.newest()
		if err != nil {
			return nil, err
		}
		return &tls.Config{
			Certificates: []tls.Certificate{f.certificate},
			ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: f.roots,
		}, nil
	}}
}

func serve(directory, address string) error {
	v := &volume{directory: directory}
	listener, err := tls.Listen("tcp", address, v.serverConfig())
	if err != nil {
		return err
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go greet(connection.(*tls.Conn))
	}
}

func greet(connection *tls.Conn) {
	defer connection.Close()
	if err := connection.Handshake(); err != nil {
		log.Print("refused: ", err)
		return
	}
	fmt.Fprintln(connection, "hello", connection.ConnectionState().PeerCertificates[0].DNSNames)
}

func call(directory, address, name string) error {
	f, err := readFiles(directory) // again for each connection
	if err != nil {
		return err
	}
	connection, err := tls.Dial("tcp", address, &tls.Config{
		Certificates: []tls.Certificate{f.certificate}, RootCAs: f.roots, ServerName: name,
	})
	if err != nil {
		return err
	}
	defer connection.Close()
	if _, err := io.Copy(os.Stdout, connection); err != nil {
		return err
	}
	_, err = fmt.Printf("serial %x\n", connection.ConnectionState().PeerCertificates[0].SerialNumber)
	return err
}
