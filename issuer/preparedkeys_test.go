package issuer

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flexstack/step-csi/issuer/panics"
)

// timeOf is how long slowKeys takes for a key.
var timeOf = map[KeyType]time.Duration{RSA2048: 100 * time.Millisecond, RSA3072: 400 * time.Millisecond, RSA4096: time.Second}

// numberedKey is one of slowKeys.
type numberedKey struct {
	crypto.Signer
	number int
	of     KeyType
}

// slowKeys generates keys in virtual time.
type slowKeys struct {
	*KeyGenerator
	stop context.CancelFunc

	mu         sync.Mutex
	made       []KeyType
	preparing  []time.Time // when the preparation of a key began
	waits      []interval  // in which a pod waited for a key
	goroutines int
}

// interval is one in virtual time, without its ends: what happens in the same instant has no order.
type interval struct{ from, to time.Time }

func (i interval) has(t time.Time) bool { return t.After(i.from) && t.Before(i.to) }

func virtualKeys(t *testing.T, test func(t *testing.T, k *slowKeys)) {
	synctest.Test(t, func(t *testing.T) {
		k := &slowKeys{KeyGenerator: NewKeyGenerator()}
		generate := func(of KeyType) (PrivateKey, error) {
			k.mu.Lock()
			k.made = append(k.made, of)
			key := numberedKey{number: len(k.made), of: of}
			k.mu.Unlock()
			time.Sleep(timeOf[of])
			return PrivateKey{key}, nil
		}
		k.generate = generate
		k.prepared.generate = func(of KeyType) (PrivateKey, error) {
			k.mu.Lock()
			k.preparing = append(k.preparing, time.Now())
			k.mu.Unlock()
			return generate(of)
		}
		var ctx context.Context
		ctx, k.stop = context.WithCancel(t.Context())
		var ending sync.WaitGroup
		k.Prepare(func(f func(context.Context)) {
			ending.Go(func() {
				defer panics.Recover(ctx, "prepare", nil)
				k.mu.Lock()
				k.goroutines++
				k.mu.Unlock()
				defer func() {
					k.mu.Lock()
					k.goroutines--
					k.mu.Unlock()
				}()
				f(ctx)
			})
		})
		test(t, k)
		k.stop()
		ending.Wait()
		for _, wait := range k.waits {
			if slices.ContainsFunc(k.preparing, wait.has) {
				t.Errorf("a key was prepared while a pod waited for one, from %s to %s", wait.from, wait.to)
			}
		}
		for _, of := range KeyTypes() {
			if n := k.Prepared(of); n > 0 {
				t.Errorf("%d keys of %s are left at the end", n, of)
			}
		}
	})
}

// running returns the number of goroutines that prepare keys.
func (k *slowKeys) running() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.goroutines
}

// total returns how many keys were generated.
func (k *slowKeys) total() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.made)
}

func starting(namespace, uid string) Applicant {
	return Applicant{Pod: Pod{Namespace: namespace, UID: uid}, Starting: true}
}

func renewing(namespace, uid string) Applicant {
	return Applicant{Pod: Pod{Namespace: namespace, UID: uid}}
}

// get returns a key, and how long the pod waited for it.
func (k *slowKeys) get(t *testing.T, a Applicant, of KeyType) (numberedKey, time.Duration) {
	t.Helper()
	began := time.Now()
	key, err := k.Generate(t.Context(), a, of)
	k.mu.Lock()
	k.waits = append(k.waits, interval{began, time.Now()})
	k.mu.Unlock()
	if err != nil {
		t.Error(err)
		return numberedKey{}, 0
	}
	return key.Signer.(numberedKey), time.Since(began)
}

// at returns how long each of n pods of a namespace waits that start at the same time.
func (k *slowKeys) at(t *testing.T, n int, namespace string, of KeyType) []time.Duration {
	t.Helper()
	waits := make([]time.Duration, n)
	var pods sync.WaitGroup
	for i := range n {
		pods.Go(func() { _, waits[i] = k.get(t, starting(namespace, fmt.Sprint("pod-", i)), of) })
	}
	pods.Wait()
	slices.Sort(waits)
	return waits
}

// settle lets all keys be prepared that are to be prepared.
func settle() {
	time.Sleep(time.Minute)
	synctest.Wait()
}

// A pod that starts after another one with an RSA key of the same size does not wait.
func TestPreparedKeyIsThere(t *testing.T) {
	for of, slow := range timeOf {
		virtualKeys(t, func(t *testing.T, k *slowKeys) {
			if _, waited := k.get(t, starting("shop", "first"), of); waited != slow {
				t.Errorf("the first %s key took %s", of, waited)
			}
			settle()
			for i := range 3 {
				if key, waited := k.get(t, starting("shop", fmt.Sprint(i)), of); waited != 0 || key.of != of {
					t.Errorf("%s: waited %s for a key of %s", of, waited, key.of)
				}
				settle()
			}
		})
	}
}

// Ten pods that start after ten others do not wait either, and a hundred pods that start at
// once leave no more than ten keys behind.
func TestPreparedKeysOfManyPods(t *testing.T) {
	virtualKeys(t, func(t *testing.T, k *slowKeys) {
		k.at(t, 10, "shop", RSA2048)
		settle()
		if waits := k.at(t, 10, "shop", RSA2048); waits[9] != 0 {
			t.Errorf("ten pods waited %v", waits)
		}
		k.at(t, 100, "shop", RSA2048)
		before := k.total()
		settle()
		if ready, made := k.Prepared(RSA2048), k.total()-before; ready != mostPrepared || made > mostPrepared {
			t.Errorf("%d keys are ready, %d were prepared", ready, made)
		}
	})
}

// Every key is used once, however many pods take keys while others are prepared.
func TestPreparedKeysAreUsedOnce(t *testing.T) {
	virtualKeys(t, func(t *testing.T, k *slowKeys) {
		var mu sync.Mutex
		users := map[int]string{}
		var pods sync.WaitGroup
		for i := range 200 {
			pods.Go(func() {
				time.Sleep(time.Duration(i/20)*10*time.Second + time.Duration(i)*7*time.Millisecond)
				uid := fmt.Sprint("pod-", i)
				key, _ := k.get(t, starting(fmt.Sprint("namespace-", i%3), uid), RSA2048)
				mu.Lock()
				defer mu.Unlock()
				if other, used := users[key.number]; used {
					t.Errorf("%s and %s have the same key", other, uid)
				}
				users[key.number] = uid
			})
		}
		pods.Wait()
		prepared := 0
		k.mu.Lock()
		prepared = len(k.preparing)
		k.mu.Unlock()
		if prepared < 10 {
			t.Errorf("only %d keys were prepared", prepared)
		}
	})
}

// Only sizes that pods use are prepared, and not more keys than they used. Other key types
// start nothing.
func TestKeysArePreparedOnlyWhereNeeded(t *testing.T) {
	virtualKeys(t, func(t *testing.T, k *slowKeys) {
		for _, of := range []KeyType{ECDSAP256, ECDSAP384, ECDSAP521, Ed25519} {
			k.get(t, starting("shop", "1"), of)
		}
		settle()
		if k.running() != 0 || len(k.prepared.sizes) != 0 {
			t.Error("keys of other types start a goroutine")
		}
		for i := range 3 {
			k.get(t, starting("shop", fmt.Sprint(i)), RSA3072)
		}
		settle()
		for _, of := range KeyTypes() {
			if ready := k.Prepared(of); ready > 3 || (of == RSA3072) != (ready > 0) {
				t.Errorf("%d keys of %s are ready", ready, of)
			}
		}
	})
}

// A size that no pod uses for an hour has no keys any more, while others stay. In the end,
// there is no goroutine. The next use starts it again.
func TestUnusedPreparedKeysAreDropped(t *testing.T) {
	virtualKeys(t, func(t *testing.T, k *slowKeys) {
		for range 2 {
			k.get(t, starting("shop", "1"), RSA2048)
			k.get(t, starting("shop", "1"), RSA4096)
			time.Sleep(preparedTime / 2)
			k.get(t, starting("shop", "2"), RSA4096)
			time.Sleep(preparedTime/2 + time.Minute)
			synctest.Wait()
			if k.Prepared(RSA2048) != 0 || k.Prepared(RSA4096) == 0 || k.running() != 1 {
				t.Errorf("after an hour, %d and %d keys are ready, in %d goroutines", k.Prepared(RSA2048), k.Prepared(RSA4096), k.running())
			}
			before := k.total()
			time.Sleep(24 * time.Hour)
			synctest.Wait()
			if k.Prepared(RSA4096) != 0 || k.running() != 0 || len(k.prepared.sizes) != 0 || k.total() != before {
				t.Errorf("after a day, %d keys are ready, in %d goroutines; %d more were generated", k.Prepared(RSA4096), k.running(), k.total()-before)
			}
		}
	})
}

// A request does not wait for a key that is being prepared, of whatever size.
func TestPreparingDelaysNoRequest(t *testing.T) {
	virtualKeys(t, func(t *testing.T, k *slowKeys) {
		k.get(t, starting("shop", "1"), RSA4096)
		time.Sleep(quietTime + timeOf[RSA4096]/2) // one is being prepared
		synctest.Wait()
		if k.total() != 2 {
			t.Fatalf("%d keys were begun", k.total())
		}
		for _, of := range []KeyType{RSA2048, RSA4096} {
			if _, waited := k.get(t, starting("shop", "2"), of); waited > timeOf[of] {
				t.Errorf("waited %s for a key of %s", waited, of)
			}
		}
	})
}

// While pods wait for keys one after the other, nothing is prepared.
func TestNothingIsPreparedWhileRequestsWait(t *testing.T) {
	virtualKeys(t, func(t *testing.T, k *slowKeys) {
		var pods sync.WaitGroup
		for i := range 100 {
			pods.Go(func() { k.get(t, renewing("shop", fmt.Sprint(i)), RSA3072) })
		}
		pods.Wait() // virtualKeys checks what was prepared
		if waited := k.waits[len(k.waits)-1]; waited.to.Sub(waited.from) < 10*timeOf[RSA3072] {
			t.Errorf("the last pod waited for %s only", waited.to.Sub(waited.from))
		}
	})
}

// While pods ask for keys, with less than a second between them, nothing is prepared.
func TestNothingIsPreparedDuringABurst(t *testing.T) {
	virtualKeys(t, func(t *testing.T, k *slowKeys) {
		k.at(t, 10, "shop", RSA2048)
		settle()
		before := k.total()
		for i := range 20 {
			k.get(t, starting("shop", fmt.Sprint(i)), RSA2048)
			time.Sleep(quietTime - 2*timeOf[RSA2048])
		}
		if prepared := k.total() - before - 10; prepared > 0 {
			t.Errorf("%d keys were prepared meanwhile", prepared)
		}
		settle()
		if k.Prepared(RSA2048) != mostPrepared {
			t.Errorf("%d keys are ready afterwards", k.Prepared(RSA2048))
		}
	})
}

// Preparing takes at most half of the time.
func TestPreparingPauses(t *testing.T) {
	virtualKeys(t, func(t *testing.T, k *slowKeys) {
		k.at(t, 10, "shop", RSA4096)
		before := k.total()
		time.Sleep(9 * timeOf[RSA4096])
		synctest.Wait()
		if prepared := k.total() - before; prepared < 2 || prepared > 5 {
			t.Errorf("%d keys were begun in the time of nine", prepared)
		}
	})
}

// Renewals count as use, and leave the prepared keys to pods that start.
func TestRenewalsTakeNoPreparedKey(t *testing.T) {
	virtualKeys(t, func(t *testing.T, k *slowKeys) {
		for i := range 5 {
			if _, waited := k.get(t, renewing("shop", fmt.Sprint(i)), RSA2048); waited != timeOf[RSA2048] {
				t.Errorf("renewal %d waited %s", i, waited)
			}
			settle()
		}
		if ready, made := k.Prepared(RSA2048), k.total(); ready != 5 || made != 10 {
			t.Errorf("%d keys are ready, %d were generated", ready, made)
		}
		if _, waited := k.get(t, starting("shop", "web"), RSA2048); waited != 0 {
			t.Errorf("the pod waited %s", waited)
		}
	})
}

// A pod that takes many keys leaves the other pods of its namespace their share, and a
// namespace the others, even if it has used thousands of keys since. The share of the others
// is what they used recently, up to an equal part.
func TestPreparedKeysAreShared(t *testing.T) {
	for uses, left := range map[int]int{1: 1, 3: 3, 20: mostPrepared / 2} {
		virtualKeys(t, func(t *testing.T, k *slowKeys) {
			for i := range uses {
				k.get(t, starting("bank", fmt.Sprint(i)), RSA2048)
			}
			for range 50 {
				k.at(t, 20, "greedy", RSA2048)
			}
			settle()
			if len(k.prepared.sizes[RSA2048].uses) > mostUses {
				t.Errorf("%d uses are remembered", len(k.prepared.sizes[RSA2048].uses))
			}
			var pods sync.WaitGroup
			pods.Go(func() {
				if waits := k.at(t, 30, "greedy", RSA2048); waits[mostPrepared-left-1] != 0 || waits[mostPrepared-left] == 0 {
					t.Errorf("%d uses of the other namespace: the greedy namespace waited %v", uses, waits)
				}
			})
			synctest.Wait()
			for i := range left {
				if _, waited := k.get(t, starting("bank", fmt.Sprint("new", i)), RSA2048); waited != 0 {
					t.Errorf("pod %d of the other namespace waited %s", i, waited)
				}
			}
			pods.Wait()
		})
	}
	// Each of many namespaces may have one.
	virtualKeys(t, func(t *testing.T, k *slowKeys) {
		for i := range 20 {
			k.get(t, starting(fmt.Sprint(i), "web"), RSA2048)
		}
		settle()
		for i := range mostPrepared {
			if _, waited := k.get(t, starting(fmt.Sprint(i), "web"), RSA2048); waited != 0 {
				t.Errorf("pod %d of many namespaces waited %s", i, waited)
			}
		}
	})
	virtualKeys(t, func(t *testing.T, k *slowKeys) {
		k.get(t, starting("shop", "modest"), RSA2048)
		for range 20 {
			k.get(t, starting("shop", "greedy"), RSA2048)
		}
		settle()
		var keys sync.WaitGroup
		for range 30 {
			keys.Go(func() { k.get(t, starting("shop", "greedy"), RSA2048) })
		}
		synctest.Wait()
		if _, waited := k.get(t, starting("shop", "modest"), RSA2048); waited != 0 {
			t.Errorf("the other pod waited %s", waited)
		}
		keys.Wait()
	})
	// Without another namespace and another pod, all keys are for the only one.
	virtualKeys(t, func(t *testing.T, k *slowKeys) {
		for range 10 {
			k.get(t, starting("shop", "web"), RSA2048)
		}
		settle()
		for i := range 10 {
			if _, waited := k.get(t, starting("shop", "web"), RSA2048); waited != 0 {
				t.Errorf("key %d: waited %s", i, waited)
			}
		}
	})
}

// A panic ends the goroutine, and the next use starts another one.
func TestPanicWhilePreparing(t *testing.T) {
	virtualKeys(t, func(t *testing.T, k *slowKeys) {
		working := k.prepared.generate
		k.prepared.generate = func(KeyType) (PrivateKey, error) { panic("a defect") }
		k.get(t, starting("shop", "1"), RSA2048)
		settle()
		if k.running() != 0 {
			t.Fatal("the goroutine goes on")
		}
		k.prepared.generate = working
		k.get(t, starting("shop", "2"), RSA2048)
		settle()
		if k.Prepared(RSA2048) != 1 || k.running() != 1 {
			t.Errorf("%d keys are ready", k.Prepared(RSA2048))
		}
	})
}

// Without Prepare, nothing is prepared and nothing is remembered. After its end, neither.
func TestNothingIsPreparedOutsideOfTheDriver(t *testing.T) {
	virtualKeys(t, func(t *testing.T, k *slowKeys) {
		k.stop()
		k.get(t, starting("shop", "1"), RSA2048)
		settle()
		if k.total() != 1 || k.running() != 0 || len(k.prepared.sizes) != 0 {
			t.Errorf("%d keys were generated", k.total())
		}
		k.Prepare(nil)
		k.get(t, starting("shop", "1"), RSA2048)
		if len(k.prepared.sizes) != 0 {
			t.Error("a use is remembered")
		}
	})
}

// A prepared key works like any other one.
func TestPreparedKeyWorks(t *testing.T) {
	g := NewKeyGenerator()
	ctx, cancel := context.WithCancel(t.Context())
	var ending sync.WaitGroup
	g.Prepare(func(f func(context.Context)) { ending.Go(func() { f(ctx) }) })
	defer ending.Wait()
	defer cancel()
	if _, err := g.Generate(ctx, starting("shop", "1"), RSA2048); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); g.Prepared(RSA2048) == 0; time.Sleep(time.Millisecond) {
		if time.Since(begin) > time.Minute {
			t.Fatal("no key is prepared")
		}
	}
	key, err := g.Generate(ctx, starting("shop", "2"), RSA2048)
	if err != nil || !RSA2048.Matches(key.Signer) {
		t.Fatalf("%v; %v", key, err)
	}
	if err := CheckKey(key.Public()); err != nil {
		t.Error(err)
	}
	digest := sha256.Sum256([]byte("a message"))
	if _, err := key.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
		t.Error(err)
	}
}

// BenchmarkPreparedKey measures the memory and the processor time of a key.
func BenchmarkPreparedKey(b *testing.B) {
	for _, of := range []KeyType{RSA2048, RSA3072, RSA4096} {
		b.Run(string(of), func(b *testing.B) {
			used := func() (memory uint64, processor time.Duration) {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				var r syscall.Rusage
				if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
					b.Fatal(err)
				}
				return m.HeapAlloc, time.Duration(r.Utime.Nano() + r.Stime.Nano())
			}
			keys := make([]PrivateKey, 0, b.N)
			memory, processor := used()
			for range b.N {
				key, err := of.Generate()
				if err != nil {
					b.Fatal(err)
				}
				keys = append(keys, key)
			}
			memoryAfter, processorAfter := used()
			runtime.KeepAlive(keys)
			b.ReportMetric(float64(memoryAfter-memory)/1024/float64(b.N), "KiB/key")
			b.ReportMetric((processorAfter-processor).Seconds()*1000/float64(b.N), "cpu-ms/key")
		})
	}
}

// A use at the moment at which the goroutine ends starts another one.
func TestUseWhilePreparationEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, started := NewKeyGenerator().prepared, 0
		p.background = func(func(context.Context)) { started++ }
		one := renewing("shop", "pod-1").Owner()
		p.use(one, RSA2048)
		time.Sleep(preparedTime)
		if _, wait := p.next(time.Now()); wait != 0 {
			t.Fatalf("the goroutine waits for another %s", wait)
		}
		p.use(one, RSA2048)
		if of, wait := p.next(time.Now().Add(quietTime)); started != 2 || of != RSA2048 || wait == 0 {
			t.Errorf("%d goroutines were started; the next key is %q", started, of)
		}
	})
}
