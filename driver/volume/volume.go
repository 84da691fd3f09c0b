// Package volume owns everything about one mounted volume: its tmpfs with the files and
// the record, its renewals, and its removal.
//
// A volume's only persistent state is its mount. Create makes a volume. Find finds a volume
// of an earlier process, and Adopt takes it over once the kubelet has said whose it is.
// Renew and ReplaceRoots change a volume, and Close removes it. Check checks the
// invariants of a mounted volume. Package driver serves the CSI calls and keeps the
// registry of volumes.
//
// A container can write to its volume if it runs as root, or as the files' owner, and its pod
// does not set readOnly, because container runtimes then make its mount writable; or if it has
// CAP_SYS_ADMIN. Only with CAP_SYS_ADMIN can it change the record. This package reads both with
// limits, follows no link out of the volume, and takes neither a pod's identity nor what to
// revoke from them.
package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
	// ErrUnconfirmed means that only the volume's record says whose volume it is.
	ErrUnconfirmed = errors.New("the kubelet has not published the volume since the node plugin started; " +
		"check that the CSIDriver object has requiresRepublish: true")
)

// renewalTimeout limits one renewal, including the wait for other calls.
const renewalTimeout = 2 * time.Minute

// ConfirmationLimit is how long the kubelet may take to publish a volume of an earlier
// process again. It publishes every 60 to 90 s.
const ConfirmationLimit = 5 * time.Minute

// Node is the configuration that all volumes of a node share.
type Node struct {
	// DriverName is the source of the mounts. The next process finds the mounts by it.
	DriverName string
	// Targets is the kubelet's directory. Target paths are relative to it.
	Targets *tmpfs.Directory
	// Attributes is the configuration for parsing volume attributes.
	Attributes attributes.Config
	// MinInterval is the shortest time between two renewals of a volume.
	MinInterval time.Duration
	// Issuers by name.
	Issuers map[string]*Issuer
	// Background runs a function in the background. Its context ends with the plugin.
	Background func(func(context.Context))
	// Revoke revokes a certificate of the volume in the background.
	Revoke func(context.Context, *Volume, issuer.Revocation)
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
	// found is when Find found the volume; zero if the spec is the kubelet's.
	found  time.Time
	device uint64 // of the tmpfs

	token atomic.Pointer[issuer.Token]   // the newest, or nil; only in memory
	entry atomic.Pointer[schedule.Entry] // once Keep was called; nil if unfit
	extra atomic.Int64                   // memory in bytes beyond that of a usual volume
	gone  atomic.Bool                    // a renewal found that the volume is not mounted
	// renewFirst means that the mounted files are damaged, or do not match the spec.
	renewFirst bool

	mu          sync.Mutex // held while the mounted files are rewritten
	closed      bool
	certificate certificate // the mounted one
	// issued means that this process has the certificate from the issuer. Otherwise, the
	// certificate was read from the mount.
	issued bool
	roots  issuer.Roots // those known to be in the mount; empty after Adopt
	early  time.Time    // the expiry of the chain for which RenewEarly made the renewal due
	// rootless is why the mounted certificate leads to none of the newest roots.
	rootless error
	// unwritten is why the newest roots are not in the mount, after so many attempts in a row.
	unwritten error
	attempts  int
}

// newVolume makes a volume that does not know its mount yet. If the attributes or the password
// are invalid, the volume is unfit.
func newVolume(n *Node, s Spec) *Volume {
	v := &Volume{Spec: s, node: n}
	if v.attributes, v.unfit = parse(n, s); v.unfit == nil {
		v.issuer = n.Issuers[v.attributes.Issuer]
	}
	return v
}

// parse parses the attributes. A password that the pod has given gets no file.
func parse(n *Node, s Spec) (attributes.Attributes, error) {
	a, err := attributes.Parse(s.Attributes, s.Pod, s.MountGroup, n.Attributes)
	if err != nil || !a.Files.HasKeyStore() || !s.Password.Given() {
		return a, err
	}
	if err := s.Password.Check(); err != nil {
		return attributes.Attributes{}, err
	}
	a.Files.KeyStorePassword = ""
	return a, nil
}

// Create makes a volume and mounts it. After an error, nothing is mounted. The error
// wraps ErrInvalid or an issuer.Outcome where one of them applies.
func Create(ctx context.Context, n *Node, s Spec, token issuer.Token) (*Volume, error) {
	v := newVolume(n, s)
	if v.unfit != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, v.unfit)
	}
	if err := v.attributes.CheckRenewBefore(v.issuer.DefaultLifetime()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if v.attributes.RevokeOnDelete && !v.issuer.CanRevoke() {
		return nil, fmt.Errorf("%w: revoke-on-delete: the issuer %s cannot revoke; leave it out", ErrInvalid, v.issuer.Name)
	}
	if err := v.checkPassword(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	v.token.Store(&token)

	// The tmpfs comes first: a certificate for a volume that cannot be mounted would be
	// wasted. Until Attach, no other process sees the tmpfs, and Close removes it.
	tree, err := tmpfs.Create(tmpfs.Options{
		Source: n.DriverName, Size: tmpfsSize, Inodes: tmpfsInodes, SELinuxContext: s.SELinuxContext,
	})
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	target, err := n.Targets.Make(s.Target)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	if v.device, err = tree.Device(); err == nil {
		err = v.first(ctx, tree, target)
	}
	if err != nil {
		target.Abandon()
		return nil, err
	}
	if v.attributes.TrustOnly {
		klog.FromContext(ctx).Info("Roots mounted", append(v.LogValues(), "issuer", v.issuer.Name, "count", len(v.roots.All()))...)
	} else {
		v.logIssued(ctx, "Certificate issued")
	}
	v.logNoSVID(ctx)
	if warning := v.attributes.ModeWarning(); warning != "" {
		klog.FromContext(ctx).Info("Warning: the application may not be able to read the files", append(v.LogValues(), "reason", warning)...)
	}
	return v, nil
}

// first gets the first certificate and mounts it. If the certificate cannot be mounted,
// first revokes it. With trust only, first mounts the roots.
func (v *Volume) first(ctx context.Context, tree *tmpfs.Tree, target *tmpfs.Target) error {
	var credential *issuer.Credential
	var err error
	if v.attributes.TrustOnly {
		credential, err = v.onlyRoots(ctx)
	} else {
		credential, err = v.issue(ctx, schedule.Publish, issuer.PrivateKey{})
	}
	if err != nil {
		return err
	}
	if err = v.write(tree, credential); err == nil {
		err = tree.Attach(target.File)
	}
	if err != nil {
		v.revokeUnused(ctx, credential.Chain, credential.Key)
	}
	return err
}

// Renew replaces the certificate of the mounted volume. If it cannot write the new files,
// the old files stay, and it revokes the new certificate. The error is ErrGone if the
// volume is not mounted. It is schedule.ErrLimited if the new certificate is mounted, and
// works no longer than the previous one.
func (v *Volume) Renew(ctx context.Context) error {
	if v.IsFound() {
		return ErrUnconfirmed
	}
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
	before := v.certificate.expiry()
	if err = v.rewrite(credential); err == nil {
		v.logIssued(ctx, "Certificate renewed")
		return v.checkLonger(before)
	} else if v.certificate.Serial != credential.Leaf().SerialNumber.String() { // it is not mounted
		v.revokeUnused(ctx, credential.Chain, credential.Key)
	}
	return err
}

// rewrite writes a credential into the mounted volume. It requires the lock.
func (v *Volume) rewrite(c *issuer.Credential) error {
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
	return v.write(tree, c)
}

// issue requests a credential from the volume's issuer, and waits until it is valid. A first
// certificate and a renewal differ only in their priority, and in the key, which a renewal may
// reuse.
func (v *Volume) issue(ctx context.Context, p schedule.Priority, key issuer.PrivateKey) (*issuer.Credential, error) {
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("issuer", v.issuer.Name))
	applicant := v.Applicant()
	applicant.Starting = p == schedule.Publish
	prepared, err := v.issuer.Prepare(ctx, applicant, v.attributes.Request, key)
	var credential *issuer.Credential
	switch {
	case err != nil:
		v.issuer.Observe(p, time.Now(), err)
	case v.attributes.RevokeOnDelete:
		credential, err = v.signToTheEnd(ctx, p, prepared)
	default:
		credential, err = v.sign(ctx, p, func(ctx context.Context) (*issuer.Credential, error) { return v.issuer.Sign(ctx, prepared) })
	}
	if err == nil {
		if err = v.awaitValid(ctx, credential); err != nil {
			v.revokeUnused(ctx, credential.Chain, credential.Key)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("issuer %s: %w", v.issuer.Name, err)
	}
	return credential, nil
}

// sign makes the call to the issuer when the scheduler allows it.
func (v *Volume) sign(ctx context.Context, p schedule.Priority, call func(context.Context) (*issuer.Credential, error)) (credential *issuer.Credential, err error) {
	err = v.issuer.Scheduler.Call(ctx, p, v.Pod.Owner(), func(ctx context.Context) (err error) {
		began := time.Now()
		credential, err = call(ctx)
		v.issuer.Observe(p, began, err)
		return err
	})
	return credential, err
}

// write writes a credential into the volume's tmpfs. It uses the newest known roots,
// because the roots may have changed since the call to the issuer.
func (v *Volume) write(tree *tmpfs.Tree, c *issuer.Credential) error {
	now, roots := time.Now(), v.issuer.LatestRoots()
	if err := roots.CheckExpiry(now); err != nil {
		return err
	}
	c.Roots = roots.Current(now)
	root, err := tree.Root()
	if err != nil {
		return err
	}
	defer root.Close()
	files, err := payload.Encode(c, v.attributes, v.keyStorePassword(root))
	if err != nil {
		return err
	}
	defer wipe(files)
	if err := v.makeRoom(tree, files); err != nil {
		return fmt.Errorf("write the files: %w", err)
	}
	cleanUp := payload.Write(root, files, payload.AccessOf(v.attributes))
	if cleanUp != nil && !errors.Is(cleanUp, payload.ErrCleanUp) {
		return fmt.Errorf("write the files: %w", cleanUp)
	}
	// From here on, the new certificate is mounted, even if a later step fails.
	if !v.attributes.TrustOnly {
		leaf := c.Leaf()
		v.certificate = certificate{Issued: c.Asked, NotAfter: leaf.NotAfter, Serial: leaf.SerialNumber.String()}
		v.certificate.limit(c.LimitedBy(), c.NotAfter())
		v.rootless = nil
		v.issued = true
	}
	if err := writeRecord(tree, v.record()); err != nil {
		return err
	}
	v.roots = c.Roots
	return cleanUp
}

// wipe overwrites the encoded key and the password, which are in some of the files.
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
	key, err := payload.ReadKey(root, v.attributes.Files.PrivateKey)
	if err != nil || !v.attributes.Request.KeyType.Matches(key.Signer) {
		return issuer.PrivateKey{}, nil // unreadable, or the pod wants another type
	}
	return key, nil
}

// Keep renews the volume whenever it is due, until Stop or Close, unless Find made it, or it
// has trust only. The caller must have registered the volume, so that later changes of the
// roots reach it. Keep writes the changes from before that.
func (v *Volume) Keep(ctx context.Context) {
	if v.unfit != nil {
		return // neither the issuer nor the request is known
	}
	if !v.IsFound() && !v.attributes.TrustOnly {
		v.mu.Lock() // a change of the roots may change the expiry
		entry := v.issuer.Scheduler.Add(v.Pod.UID, v.validityLocked(), v.renewDue)
		v.entry.Store(entry)
		v.mu.Unlock()
		if v.renewFirst {
			entry.RenewNow()
		}
	}
	if _, err := v.ReplaceRoots(); err != nil {
		klog.FromContext(ctx).Error(err, "Cannot replace the roots in a volume", v.LogValues()...)
	}
	v.RenewEarly(ctx)
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
	case errors.Is(err, schedule.ErrLimited): // the new certificate is logged
	case err != nil && ctx.Err() == nil:
		logger.Error(err, "Renewal failed", append(v.LogValues(), "notAfter", v.validity().NotAfter.UTC().Format(time.RFC3339))...)
	}
	return v.validity(), err
}

// Applicant returns the volume's pod with its newest token, which may have expired.
func (v *Volume) Applicant() issuer.Applicant {
	a := issuer.Applicant{Pod: v.Pod}
	if token := v.token.Load(); token != nil {
		a.Token = *token
	}
	return a
}

// ModeWarning returns a warning if only root can be expected to read the files, or an
// empty string.
func (v *Volume) ModeWarning() string {
	if v.issuer == nil {
		return "" // the attributes are not known
	}
	return v.attributes.ModeWarning()
}

// TakeToken takes the pod's token if it is newer than the known one.
func (v *Volume) TakeToken(token issuer.Token) {
	if !token.NewerThan(v.Applicant().Token) {
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

// Issuer returns the volume's issuer, or nil if the volume is unfit.
func (v *Volume) Issuer() *Issuer { return v.issuer }

// IssuerName returns the name of the volume's issuer, also if it is not in the configuration.
func (v *Volume) IssuerName() string {
	if v.issuer != nil {
		return v.issuer.Name
	}
	return cmp.Or(v.Attributes["issuer"], "default")
}

// Unmanaged returns why the volume is not renewed, or nil: ErrGone if a renewal found that
// the volume is not mounted; the error of the attributes; or ErrUnconfirmed, once the
// kubelet has had ConfirmationLimit to publish the volume.
func (v *Volume) Unmanaged() error {
	switch {
	case v.gone.Load():
		return ErrGone
	case v.unfit != nil:
		return v.unfit
	case v.IsFound() && time.Since(v.found) >= ConfirmationLimit:
		return ErrUnconfirmed
	}
	return nil
}

// IsFound tells whether Find made the volume: its spec is that of its record.
func (v *Volume) IsFound() bool { return !v.found.IsZero() }

// SharesMount tells whether the other volume is the same tmpfs, mounted at another path.
func (v *Volume) SharesMount(other *Volume) bool {
	return v.device == other.device && v.Target != other.Target
}

// State returns the state of the renewals. Of a volume with trust only, it is that of the
// roots.
func (v *Volume) State() schedule.State {
	if v.TrustOnly() {
		return v.trustState()
	}
	entry := v.entry.Load()
	if entry == nil {
		s := schedule.State{Validity: v.validity(), Err: v.Unmanaged()}
		if v.IsFound() {
			s.Next = s.Validity.Due()
		}
		return s
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
	validity := renewal.Validity{
		Issued: c.Issued, NotAfter: c.expiry(),
		Before: v.attributes.RenewBefore, MinInterval: v.node.MinInterval, Spread: renewal.SpreadOf(c.Serial),
	}
	if c.LimitedBy != "" {
		validity.LimitedBy, validity.LeafNotAfter = c.LimitedBy, c.NotAfter
	}
	return validity
}

// logIssued requires the lock, or a volume that no other goroutine knows yet.
func (v *Volume) logIssued(ctx context.Context, message string) {
	c := v.certificate
	values := append(v.LogValues(), "issuer", v.issuer.Name, "serial", c.Serial,
		"notAfter", c.expiry().UTC().Format(time.RFC3339),
		"renewal", v.validityLocked().Due().UTC().Format(time.RFC3339))
	if c.LimitedBy != "" {
		values = append(values, "limitedBy", c.LimitedBy, "leafNotAfter", c.NotAfter.UTC().Format(time.RFC3339))
	}
	klog.FromContext(ctx).Info(message, values...)
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
