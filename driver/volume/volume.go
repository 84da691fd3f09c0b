// Package volume owns everything about one mounted volume: the tmpfs and its files,
// the record in it, its renewals, and what is left to do when it goes.
//
// A volume has no other state than its mount. Create makes one, Adopt finds one that
// an earlier process made, Renew and ReplaceRoots change it, Close ends it. Check
// states what is true of every mounted volume in between. The CSI calls, and which
// volumes there are, are package driver's business.
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
	"github.com/flexstack/step-csi/driver/schedule"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/renewal"
)

var (
	// ErrInvalid: the attributes must be changed for the volume to be made.
	ErrInvalid = errors.New("invalid volume")
	// ErrGone: the volume is not what is mounted at its target path.
	ErrGone = errors.New("the volume is not mounted")
	// ErrConflict: another volume is mounted at the target path.
	ErrConflict = errors.New("another volume is mounted there")
)

// renewalTimeout bounds one renewal, the wait for other calls included.
const renewalTimeout = 2 * time.Minute

// Node is what all volumes of a node share.
type Node struct {
	// DriverName is the source of the mounts, by which the next process finds them.
	DriverName string
	// Targets is the kubelet's directory. Target paths are relative to it.
	Targets *tmpfs.Directory
	// Attributes is what volume attributes are checked against.
	Attributes attributes.Config
	// Issuers by name.
	Issuers map[string]*Issuer
}

// Issuer is an issuer as volumes use it.
type Issuer struct {
	*issuer.Issuer
	Name      string
	Scheduler *schedule.Scheduler
	// Observe is told of each call for a certificate: what it was for, when it began,
	// and what became of it.
	Observe func(p schedule.Priority, began time.Time, err error)
}

// Volume is one mounted volume. It is safe for concurrent use.
type Volume struct {
	Spec

	node       *Node
	attributes attributes.Attributes
	issuer     *Issuer
	// unfit says why the volume cannot be renewed: its attributes do not fit the
	// configuration, which has changed since. attributes and issuer are zero then.
	unfit error

	token atomic.Pointer[issuer.Token]   // the newest; only in memory
	entry atomic.Pointer[schedule.Entry] // once Keep was called; nil if unfit
	gone  atomic.Bool                    // a renewal found that it is not mounted
	// renewFirst says that what is mounted is damaged, or not what is wanted now.
	renewFirst bool

	mu          sync.Mutex // held while the mounted files are rewritten
	closed      bool
	certificate certificate // the mounted one
	// roots and trusted are what is known to be in the mount; empty after Adopt.
	roots   issuer.Roots
	trusted time.Time
}

// newVolume makes a volume of which nothing is mounted yet, or known to be. If the
// attributes cannot be used, the volume is unfit.
func newVolume(n *Node, s Spec) *Volume {
	v := &Volume{Spec: s, node: n}
	v.token.Store(&issuer.Token{})
	if v.attributes, v.unfit = attributes.Parse(s.Attributes, s.Pod, s.MountGroup, n.Attributes); v.unfit == nil {
		v.issuer = n.Issuers[v.attributes.Issuer]
	}
	return v
}

// Create makes a volume and mounts it: all of it, or, on an error, nothing. The error
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

	// The mount comes first: a certificate for a volume that cannot be mounted would be
	// wasted. Until it is attached, nobody sees it, and it ends with this function.
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

// Renew replaces the certificate of the mounted volume. On an error, what is mounted
// stays as it is; the error is ErrGone if the volume is not mounted.
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

// issue gets a credential from the volume's issuer. A first certificate and a renewal
// differ only in their priority, and in the key, which a renewal may keep.
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

// write puts a credential into the volume's tmpfs. The roots are the newest that are
// known, since the credential may have waited while they were replaced.
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
	// From here on, the new certificate is the mounted one, whatever else fails.
	leaf := c.Leaf()
	v.certificate = certificate{Issued: c.Asked, NotAfter: leaf.NotAfter, Serial: leaf.SerialNumber.String()}
	if err := writeRecord(tree, v.record()); err != nil {
		return err
	}
	v.roots = c.Roots
	return errors.Join(v.writeTrust(tree), cleanUp)
}

// wipe overwrites the encoded key, which is in one of the files.
func wipe(files []payload.File) {
	for _, file := range files {
		clear(file.Data)
	}
}

// keptKey is the key in the volume if the pod wants to keep it, or the zero value for
// a new one.
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
		return issuer.PrivateKey{}, nil // the pod wants another one now
	}
	return key, nil
}

// Keep renews the volume whenever that is due, until Stop or Close. The caller has
// registered it, so that it takes part in the next replacement of the roots: Keep
// replaces roots that changed before.
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

// renewDue is a renewal as the scheduler asks for it.
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

// Stop ends the renewals, and leaves the volume mounted.
func (v *Volume) Stop() {
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	if entry := v.entry.Load(); entry != nil {
		v.issuer.Scheduler.Remove(entry)
	}
}

// Close detaches the volume and ends its renewals. It returns the certificate to
// revoke, if the pod wants that. After an error, the volume is as it was.
func (v *Volume) Close() (*issuer.Revocation, error) {
	var last *os.Root // the files stay readable through it
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

// revocation is that of the certificate which was mounted last. The serial number is
// known also where the files could not be read.
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

// Issuer is the volume's issuer, or nil if the volume does not fit the configuration.
func (v *Volume) Issuer() *Issuer { return v.issuer }

// Unmanaged says why the volume is not renewed, or is nil: ErrGone if a renewal found
// that it is not mounted, or why its attributes do not fit the configuration.
func (v *Volume) Unmanaged() error {
	if v.gone.Load() {
		return ErrGone
	}
	return v.unfit
}

// State is what there is to say about the renewals.
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

// validity is that of the mounted certificate.
func (v *Volume) validity() renewal.Validity {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.validityLocked()
}

func (v *Volume) validityLocked() renewal.Validity {
	c := v.certificate
	return renewal.Validity{Issued: c.Issued, NotAfter: c.NotAfter, Before: v.attributes.RenewBefore, Spread: renewal.SpreadOf(c.Serial)}
}

// logIssued is called with the lock held, or before anybody else knows the volume.
func (v *Volume) logIssued(ctx context.Context, message string) {
	c := v.certificate
	klog.FromContext(ctx).Info(message, append(v.LogValues(), "issuer", v.issuer.Name, "serial", c.Serial,
		"notAfter", c.NotAfter.UTC().Format(time.RFC3339),
		"renewal", v.validityLocked().Due().UTC().Format(time.RFC3339))...)
}

// logNoSVID warns of a certificate with a SPIFFE ID beside another URI. Libraries
// reject it as an X.509-SVID, in the pod and at its peers, far from where the other
// URI was asked for. See
// https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md#2-spiffe-id.
func (v *Volume) logNoSVID(ctx context.Context) {
	uris := v.attributes.Request.URIs
	if len(uris) > 1 && slices.ContainsFunc(uris, func(u names.URI) bool { _, ok := u.SPIFFEID(); return ok }) {
		klog.FromContext(ctx).Info("The certificate is no X.509-SVID, which has the SPIFFE ID as its only URI; "+
			`leave out uri-sans, or set spiffe: "false" if no peer needs the ID`, append(v.LogValues(), "uris", len(uris))...)
	}
}
