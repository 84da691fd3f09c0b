package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/trust"
)

// issued is a new credential, encoded.
type issued struct {
	files    []payload.File
	issued   time.Time
	notAfter time.Time
	serial   string
	learnt   trust.Learnt // what the authority was verified by
}

// issue asks the volume's issuer for a new credential. key is the zero value
// for a new key.
func (d *Driver) issue(ctx context.Context, v *volume, isRenewal bool, key issuer.PrivateKey) (*issued, error) {
	authority := d.authorities[v.attributes.Issuer]
	now := time.Now()
	credential, err := authority.issuer.Issue(ctx, v.applicant(), v.attributes.Request, key)
	d.metrics.signed(v.attributes.Issuer, isRenewal, now, credential, err)
	if err != nil {
		return nil, fmt.Errorf("issuer %s: %w", v.attributes.Issuer, err)
	}
	files, err := payload.Encode(credential, v.attributes)
	if err != nil {
		return nil, err
	}
	leaf := credential.Leaf()
	return &issued{
		files:    files,
		issued:   now,
		notAfter: leaf.NotAfter,
		serial:   leaf.SerialNumber.String(),
		learnt:   authority.issuer.Trust().Learnt(),
	}, nil
}

// issueFirst is issue for a pod that waits, as soon as there is a place for it.
func (d *Driver) issueFirst(ctx context.Context, v *volume) (i *issued, err error) {
	name := v.attributes.Issuer
	admitted := sync.OnceFunc(d.metrics.wait(name))
	defer admitted()
	begun := false
	err = d.authorities[name].line.Publish(ctx, func(ctx context.Context) error {
		admitted()
		begun = true
		i, err = d.issue(ctx, v, false, issuer.PrivateKey{})
		return err
	})
	if err != nil && !begun {
		err = fmt.Errorf("%w: wait for other calls to issuer %s: %w", issuer.Unavailable, name, err)
	}
	return i, err
}

// write puts what was issued into the volume's tmpfs.
func (v *volume) write(tree *tmpfs.Tree, i *issued) error {
	root, err := tree.Root()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := payload.Write(root, i.files, v.access()); err != nil {
		return fmt.Errorf("write the files: %w", err)
	}
	v.record.Issued, v.record.NotAfter, v.record.Serial = i.issued, i.notAfter, i.serial
	data, err := json.Marshal(v.record)
	if err != nil {
		return err
	}
	if err := tree.SetRecord(data); err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	if err := writeLearnt(tree, i.learnt); err != nil {
		return fmt.Errorf("write the authority's roots: %w", err)
	}
	return nil
}

func (v *volume) access() payload.Access {
	return payload.Access{Mode: v.attributes.Mode, Group: v.attributes.Group}
}

// create makes the volume: all of it, or, on an error, nothing.
func (d *Driver) create(ctx context.Context, v *volume) error {
	// The place for the files is made while the CA signs.
	waiting := make(chan *place, 1)
	go func() { waiting <- d.makePlace(v.record.Target) }()
	i, err := d.issueFirst(ctx, v)
	p := <-waiting
	defer i.wipe()
	if err = errors.Join(err, p.err); err != nil {
		p.abandon()
		return err
	}
	if err := v.write(p.tree, i); err != nil {
		p.abandon()
		return err
	}
	if err := p.tree.Attach(p.target); err != nil {
		p.abandon()
		return err
	}
	p.close()
	v.logIssued(ctx, "Issued", i)
	return nil
}

// renew issues anew and rewrites the mounted volume. On an error what is
// mounted stays as it is.
func (d *Driver) renew(ctx context.Context, v *volume) error {
	if v.err != nil {
		return v.err
	}
	target, err := d.openMounted(v.record.VolumeID, v.record.Target)
	if err != nil {
		return err
	}
	key, err := v.keptKey(target)
	target.Close() // not held open while the CA is asked
	if err != nil {
		return err
	}
	i, err := d.issue(ctx, v, true, key)
	if err != nil {
		return err
	}
	defer i.wipe()
	v.writing.Lock()
	defer v.writing.Unlock()
	if target, err = d.openMounted(v.record.VolumeID, v.record.Target); err != nil {
		return err
	}
	defer target.Close()
	tree, err := tmpfs.Clone(target)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := v.write(tree, i); err != nil {
		return err
	}
	v.logIssued(ctx, "Renewed", i)
	return nil
}

// keptKey is the key in the volume, if the pod wants to keep it, or the zero
// value for a new one.
func (v *volume) keptKey(target *os.File) (issuer.PrivateKey, error) {
	if !v.attributes.ReusePrivateKey {
		return issuer.PrivateKey{}, nil
	}
	root, err := tmpfs.Root(target)
	if err != nil {
		return issuer.PrivateKey{}, err
	}
	defer root.Close()
	key, err := payload.ReadKey(root, v.attributes)
	if err != nil || !v.attributes.Request.KeyType.Matches(key.Signer) {
		return issuer.PrivateKey{}, nil // there is another one now
	}
	return key, nil
}

// wipe overwrites the encoded key, if one was issued.
func (i *issued) wipe() {
	if i == nil {
		return
	}
	for _, file := range i.files {
		clear(file.Data)
	}
}

func (v *volume) logIssued(ctx context.Context, what string, i *issued) {
	klog.FromContext(ctx).Info(what, append(v.logValues(), "issuer", v.attributes.Issuer, "serial", i.serial,
		"notAfter", i.notAfter.UTC().Format(time.RFC3339),
		"renewal", v.validity().Due().UTC().Format(time.RFC3339))...)
}
