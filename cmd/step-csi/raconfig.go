package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra/server"
)

// raFile is the part of the configuration for the registration authority alone.
type raFile struct {
	Names      []string       `json:"names"`
	Issuer     string         `json:"issuer"`
	Plugin     string         `json:"plugin"`
	Limits     limitsFile     `json:"limits"`
	Kubernetes kubernetesFile `json:"kubernetes"`
}

type limitsFile struct {
	Node limitFile `json:"node"`
	Pod  limitFile `json:"pod"`
}

type limitFile struct {
	Rate  float64 `json:"rate"`
	Burst int     `json:"burst"`
}

// kubernetesFile is how to reach the API server. It is empty in a pod of the cluster.
type kubernetesFile struct {
	URL       string `json:"url"`
	CAFile    string `json:"caFile"`
	TokenFile string `json:"tokenFile"`
}

// raConfig is the checked configuration of the registration authority.
type raConfig struct {
	*config
	file raFile
}

func (f *raFile) names() []string {
	if f == nil {
		return nil
	}
	return f.Names
}

// ra checks that the file configures a registration authority.
func (f *configFile) ra(directory string) (*raConfig, error) {
	if f.Authority == nil {
		return nil, errors.New("authority: is missing; see step-csi ra --help")
	}
	for name, i := range f.Issuers {
		if i.Provisioner.Type == typeRA {
			return nil, fmt.Errorf("issuers.%s.provisioner.type: must be %s, because a registration authority has the CA sign directly", name, typeJWK)
		}
	}
	c, err := f.check(directory)
	if err != nil {
		return nil, err
	}
	checked := &raConfig{c, *f.Authority}
	checked.file.Issuer = or(checked.file.Issuer, "default")
	if _, known := c.issuers[checked.file.Issuer]; !known {
		return nil, fmt.Errorf("authority.issuer: there is no issuer %q", checked.file.Issuer)
	}
	return checked, nil
}

// serverConfig returns the configuration of package server.
func (c *raConfig) serverConfig(reviewer server.Reviewer, metrics prometheus.Registerer) (server.Config, error) {
	namespace, name, ok := strings.Cut(c.file.Plugin, "/")
	if !ok || namespace == "" || name == "" {
		return server.Config{}, fmt.Errorf("authority.plugin: %q is not a service account in the form namespace/name; set that of the node plugins", c.file.Plugin)
	}
	serving := c.issuers[c.file.Issuer]
	s := server.Config{
		Issuers:  map[string]server.Issuer{},
		Serving:  server.Serving{Signer: serving.signer, Names: c.authorityNames, Duration: serving.bounds.Default},
		Plugin:   server.ServiceAccount{Namespace: namespace, Name: name},
		Reviewer: reviewer,
		Limits:   server.Limits{Node: server.Limit(c.file.Limits.Node), Pod: server.Limit(c.file.Limits.Pod)},
		Metrics:  metrics,
	}
	for name, i := range c.issuers {
		made, err := issuer.New(issuer.Config{Signer: i.signer, Policy: i.allow})
		if err != nil {
			return server.Config{}, err
		}
		s.Issuers[name] = server.Issuer{Issuer: made, Min: i.bounds.Min, Max: i.bounds.Max, RootsRefresh: i.rootsRefresh}
	}
	return s, nil
}

// apiServer returns the configuration of the client for the API server.
func (f kubernetesFile) apiServer() (*rest.Config, error) {
	if f == (kubernetesFile{}) {
		c, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("find the API server: %w; outside of a cluster, set authority.kubernetes.url, caFile and tokenFile", err)
		}
		return c, nil
	}
	if !strings.HasPrefix(f.URL, "https://") || f.CAFile == "" || f.TokenFile == "" {
		return nil, errors.New("authority.kubernetes: set url (https), caFile and tokenFile")
	}
	return &rest.Config{Host: f.URL, BearerTokenFile: f.TokenFile, TLSClientConfig: rest.TLSClientConfig{CAFile: f.CAFile}}, nil
}
