// Package volume owns everything about one mounted volume: its tmpfs with the files and
// the record, its renewals, and its removal.
//
// A volume's only persistent state is its mount. Create makes a volume, Adopt takes over
// a volume of an earlier process, Renew and ReplaceRoots change it, and Close removes it.
// Check checks the invariants of a mounted volume. Package driver serves the CSI calls
// and keeps the registry of volumes.
package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/renewal"
	"github.com/flexstack/step-csi/issuer/schedule"
)

var (
	// ErrInvalid means that the user must change the volume's attributes.
	ErrInvalid = errors.New("invalid volume")
	// ErrGone means that the volume is not mounted at its target path.
	ErrGone = errors.New("the volume is not mounted")
	// ErrConflict means that another volume is mounted at the target path.
	ErrConflict = errors.New("another volume is mounted there")
)

// renewalTimeout limits one renewal, including the wait for other calls.
const renewalTimeout = 2 * time.Minute

// Node is the configuration that all volumes of a node share.
type Node struct {
	// DriverName is the source of the mounts. The next process finds the mounts by it.
	DriverName string
	// Targets is the kubelet's directory. Target paths are relative to it.
	Targets *tmpfs.Directory
	// Attributes is the configuration for parsing volume attributes.
	Attributes attributes.Config
	// Issuers by name.
	Issuers map[string]*Issuer
}

// Issuer is an issuer as volumes use it.
type Issuer struct {
	*issuer.Issuer
	Name      string
	Scheduler *schedule.Scheduler
	// Observe is called after each call for a certificate, with its priority, start and
	// result.
	Observe func(p schedule.Priority, began time.Time, err error)
}

// Volume is one mounted volume. It is safe for concurrent use.
type Volume struct {
	Spec

	node       *Node
	attributes attributes.Attributes
	issuer     *Issuer
	// unfit is why the volume cannot be renewed: its attributes do not fit the
	// configuration, which has changed. attributes and issuer are then zero.
	unfit error

	token atomic.Pointer[issuer.Token]   // the newest; only in memory
	entry atomic.Pointer[schedule.Entry] // once Keep was called; nil if unfit
	gone  atomic.Bool                    // a renewal found that the volume is not mounted
	// renewFirst means that the mounted files are damaged, or do not match the spec.
	renewFirst bool

	mu          sync.Mutex // held while the mounted files are rewritten
	closed      bool
	certificate certificate  // the mounted one
	roots       issuer.Roots // those known to be in the mount; empty after Adopt
}

// newVolume makes a volume that does not know its mount yet. If the attributes are
// invalid, the volume is unfit.
func newVolume(n *Node, s Spec) *Volume {
	v := &Volume{Spec: s, node: n}
	v.token.Store(&issuer.Token{})
	if v.attributes, v.unfit = attributes.Parse(s.Attributes, s.Pod, s.MountGroup, n.Attributes); v.unfit == nil {
		v.issuer = n.Issuers[v.attributes.Issuer]
	}
	return v
}

// Create makes a volume and mounts it. After an error, nothing is mounted. The error
// wraps ErrInvalid or an issuer.Outcome where one of them applies.
func Create(ctx context.Context, n *Node, s Spec, token issuer.Token) (*Volume, error) {
	v := newVolume(n, s)
	if v.unfit != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, v.unfit)
	}
	if v.attributes.RevokeOnDelete && !v.issuer.CanRevoke() {
		return nil, fmt.Errorf("%w: revoke-on-delete: the issuer %s cannot revoke; leave it out", ErrInvalid, v.issuer.Name)
	}
	v.token.Store(&token)

	// The tmpfs comes first: a certificate for a volume that cannot be mounted would be
	// wasted. Until Attach, no other process sees the tmpfs, and Close removes it.
	tree, err := tmpfs.Create(tmpfs.Options{Source: n.DriverName, Size: tmpfsSize, Inodes: tmpfsInodes})
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	target, err := n.Targets.Make(s.Target)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	credential, err := v.issue(ctx, schedule.Publish, issuer.PrivateKey{})
	if err == nil {
		err = v.write(tree, credential)
	}
	if err == nil {
		err = tree.Attach(target.File)
	}
	if err != nil {
		target.Abandon()
		return nil, err
	}
	v.logIssued(ctx, "Certificate issued")
	v.logNoSVID(ctx)
	return v, nil
}

// Renew replaces the certificate of the mounted volume. If it cannot write the new files,
// the old files stay. The error is ErrGone if the volume is not mounted.
func (v *Volume) Renew(ctx context.Context) error {
	key, err := v.keptKey()
	if err != nil {
		return err
	}
	credential, err := v.issue(ctx, schedule.Renewal, key)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	target, err := v.Open()
	if err != nil {
		return err
	}
	defer target.Close()
	tree, err := tmpfs.Clone(target)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := v.write(tree, credential); err != nil {
		return err
	}
	v.logIssued(ctx, "Certificate renewed")
	return nil
}

// issue requests a credential from the volume's issuer. A first certificate and a renewal
// differ only in their priority, and in the key, which a renewal may reuse.
func (v *Volume) issue(ctx context.Context, p schedule.Priority, key issuer.PrivateKey) (credential *issuer.Credential, err error) {
	prepared, err := v.issuer.Prepare(ctx, issuer.Applicant{Pod: v.Pod, Token: *v.token.Load()}, v.attributes.Request, key)
	if err == nil {
		err = v.issuer.Scheduler.Call(ctx, p, func(ctx context.Context) (err error) {
			began := time.Now()
			credential, err = v.issuer.Sign(ctx, prepared)
			v.issuer.Observe(p, began, err)
			return err
		})
	} else {
		v.issuer.Observe(p, time.Now(), err)
	}
	if err != nil {
		return nil, fmt.Errorf("issuer %s: %w", v.issuer.Name, err)
	}
	return credential, nil
}

// write writes a credential into the volume's tmpfs. It uses the newest known roots,
// because the roots may have changed since the call to the issuer.
func (v *Volume) write(tree *tmpfs.Tree, c *issuer.Credential) error {
	c.Roots = v.issuer.LatestRoots()
	files, err := payload.Encode(c, v.attributes)
	if err != nil {
		return err
	}
	defer wipe(files)
	root, err := tree.Root()
	if err != nil {
		return err
	}
	defer root.Close()
	cleanUp := payload.Write(root, files, payload.AccessOf(v.attributes))
	if cleanUp != nil && !errors.Is(cleanUp, payload.ErrCleanUp) {
		return fmt.Errorf("write the files: %w", cleanUp)
	}
	// From here on, the new certificate is mounted, even if a later step fails.
	leaf := c.Leaf()
	v.certificate = certificate{Issued: c.Asked, NotAfter: leaf.NotAfter, Serial: leaf.SerialNumber.String()}
	if err := writeRecord(tree, v.record()); err != nil {
		return err
	}
	v.roots = c.Roots
	return cleanUp
}

// wipe overwrites the encoded key, which is in one of the files.
func wipe(files []payload.File) {
	for _, file := range files {
		clear(file.Data)
	}
}

// keptKey returns the volume's key if the pod wants to reuse it. The zero value means a
// new key.
func (v *Volume) keptKey() (issuer.PrivateKey, error) {
	target, err := v.Open()
	if err != nil {
		return issuer.PrivateKey{}, err
	}
	defer target.Close()
	if !v.attributes.ReusePrivateKey {
		return issuer.PrivateKey{}, nil
	}
	root, err := tmpfs.Root(target)
	if err != nil {
		return issuer.PrivateKey{}, err
	}
	defer root.Close()
	key, err := payload.ReadKey(root, v.attributes.PrivateKeyFile)
	if err != nil || !v.attributes.Request.KeyType.Matches(key.Signer) {
		return issuer.PrivateKey{}, nil // unreadable, or the pod wants another type
	}
	return key, nil
}

// Keep renews the volume whenever it is due, until Stop or Close. The caller must have
// registered the volume, so that later changes of the roots reach it. Keep writes the
// changes from before that.
func (v *Volume) Keep(ctx context.Context) {
	if v.unfit != nil {
		return // neither the issuer nor the request is known
	}
	entry := v.issuer.Scheduler.Add(v.Pod.UID, v.validity(), v.renewDue)
	v.entry.Store(entry)
	if v.renewFirst {
		entry.RenewNow()
	}
	if _, err := v.ReplaceRoots(); err != nil {
		klog.FromContext(ctx).Error(err, "Cannot replace the roots in a volume", v.LogValues()...)
	}
}

// renewDue is the renewal that the scheduler calls.
func (v *Volume) renewDue(ctx context.Context) (renewal.Validity, error) {
	limited, cancel := context.WithTimeout(ctx, renewalTimeout)
	defer cancel()
	err := v.Renew(limited)
	logger := klog.FromContext(ctx)
	switch {
	case errors.Is(err, ErrGone):
		v.gone.Store(true)
		logger.Info("Renewals stopped until the kubelet publishes the volume again", append(v.LogValues(), "reason", err.Error())...)
		err = schedule.ErrGone
	case err != nil && ctx.Err() == nil:
		logger.Error(err, "Renewal failed", append(v.LogValues(), "notAfter", v.validity().NotAfter.UTC().Format(time.RFC3339))...)
	}
	return v.validity(), err
}

// TakeToken takes the pod's token if it is newer than the known one.
func (v *Volume) TakeToken(token issuer.Token) {
	if !token.NewerThan(*v.token.Load()) {
		return
	}
	v.token.Store(&token)
	if entry := v.entry.Load(); entry != nil {
		entry.TokenArrived()
	}
}

// Stop ends the renewals. The volume stays mounted.
func (v *Volume) Stop() {
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	if entry := v.entry.Load(); entry != nil {
		v.issuer.Scheduler.Remove(entry)
	}
}

// Close detaches the volume and ends its renewals. It returns the certificate to
// revoke, if the pod requests revocation. After an error, the volume is unchanged.
func (v *Volume) Close() (*issuer.Revocation, error) {
	var last *os.Root // keeps the files readable after Detach
	if v.attributes.RevokeOnDelete {
		if target, err := v.Open(); err == nil {
			last, _ = tmpfs.Root(target)
			target.Close()
		}
	}
	if last != nil {
		defer last.Close()
	}
	if err := Detach(v.node, v.VolumeID, v.Target); err != nil {
		return nil, err
	}
	v.Stop()
	if !v.attributes.RevokeOnDelete {
		return nil, nil
	}
	return v.revocation(last), nil
}

// revocation returns the revocation of the last mounted certificate. If the files are
// unreadable, it has only the serial number.
func (v *Volume) revocation(last *os.Root) *issuer.Revocation {
	r := &issuer.Revocation{Serial: v.certificate.Serial, Pod: v.Pod}
	if last == nil {
		return r
	}
	key, err := payload.ReadKey(last, v.attributes.PrivateKeyFile)
	chain, chainErr := readCertificates(last, v.attributes.CertificateFile)
	if errors.Join(err, chainErr) == nil && chain[0].SerialNumber.String() == r.Serial {
		r.Chain, r.Key = chain, key
	}
	return r
}

// Issuer returns the volume's issuer, or nil if the volume is unfit.
func (v *Volume) Issuer() *Issuer { return v.issuer }

// Unmanaged returns why the volume is not renewed, or nil. It returns ErrGone if a renewal
// found that the volume is not mounted, else the error of the attributes.
func (v *Volume) Unmanaged() error {
	if v.gone.Load() {
		return ErrGone
	}
	return v.unfit
}

// State returns the state of the renewals.
func (v *Volume) State() schedule.State {
	entry := v.entry.Load()
	if entry == nil {
		return schedule.State{Validity: v.validity(), Err: v.unfit}
	}
	s := entry.State()
	if err := v.Unmanaged(); err != nil {
		s.Err = err
	}
	return s
}

// validity returns the validity of the mounted certificate.
func (v *Volume) validity() renewal.Validity {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.validityLocked()
}

func (v *Volume) validityLocked() renewal.Validity {
	c := v.certificate
	return renewal.Validity{Issued: c.Issued, NotAfter: c.NotAfter, Before: v.attributes.RenewBefore, Spread: renewal.SpreadOf(c.Serial)}
}

// logIssued requires the lock, or a volume that no other goroutine knows yet.
func (v *Volume) logIssued(ctx context.Context, message string) {
	c := v.certificate
	klog.FromContext(ctx).Info(message, append(v.LogValues(), "issuer", v.issuer.Name, "serial", c.Serial,
		"notAfter", c.NotAfter.UTC().Format(time.RFC3339),
		"renewal", v.validityLocked().Due().UTC().Format(time.RFC3339))...)
}

// logNoSVID warns about a certificate with a SPIFFE ID and another URI. Libraries in the
// pod and at its peers reject it as an X.509-SVID, and do not name the attribute that
// requested the other URI. See
// https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md#2-spiffe-id.
func (v *Volume) logNoSVID(ctx context.Context) {
	uris := v.attributes.Request.URIs
	if len(uris) > 1 && slices.ContainsFunc(uris, func(u names.URI) bool { _, ok := u.SPIFFEID(); return ok }) {
		klog.FromContext(ctx).Info("The certificate is no X.509-SVID, which has the SPIFFE ID as its only URI; "+
			`leave out uri-sans, or set spiffe: "false" if no peer needs the ID`, append(v.LogValues(), "uris", len(uris))...)
	}
}
