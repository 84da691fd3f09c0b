// Command storagesuite is Kubernetes' external storage suite
// (https://github.com/kubernetes/kubernetes/tree/master/test/e2e/storage/external), which
// tests the CSI driver that a file describes. It has the flags of Kubernetes' end-to-end
// tests. It is not all of them: those need modules that are not published.
package main

import (
	"flag"
	"os"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	_ "k8s.io/kubernetes/test/e2e/storage/external"
	manifests "k8s.io/kubernetes/test/e2e/testing-manifests"
)

func main() {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	testfiles.AddFileSource(manifests.GetE2ETestingManifestsFS())
	flag.Parse()
	framework.AfterReadingAllFlags(&framework.TestContext)

	gomega.RegisterFailHandler(framework.Fail)
	suite, reporter := framework.CreateGinkgoConfig()
	if !ginkgo.RunSpecs(failed{}, "Kubernetes' external storage suite", suite, reporter) {
		os.Exit(1)
	}
}

// failed takes ginkgo's call for a failed spec, which RunSpecs also returns.
type failed struct{}

func (failed) Fail() {}
