package jobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/glance-dtn/glance-dtn/internal/durable"
)

const (
	embeddedPrefix = "/glance-dtn/" // where the jobs lie in an etcd of our own

	dataDir = "etcd"     // etcd's data under the store's directory
	newDir  = "etcd.new" // data that is not complete yet

	startup = time.Minute // how long etcd may take to start; a second is usual
)

// OpenEmbedded opens the store in dir with an etcd member inside this process. It
// listens nowhere. dir is made when it is missing. One process at a time can have a
// dir open; for another one it is an error at once. Claims that a process
// left behind in dir when it died are void. ctx bounds the opening alone.
func OpenEmbedded(ctx context.Context, dir string, log *slog.Logger) (*Store, error) {
	s, err := openEmbedded(ctx, dir, log)
	if err != nil {
		return nil, fmt.Errorf("open the job store in %s: %w", dir, err)
	}
	return s, nil
}

func openEmbedded(ctx context.Context, dir string, log *slog.Logger) (_ *Store, err error) {
	lock, err := durable.LockDir(dir)
	if errors.Is(err, durable.ErrLocked) {
		return nil, errors.New("another agent, or a --once that still runs, works with it: wait until it has ended")
	}
	if err != nil {
		return nil, fmt.Errorf("%w; state.embedded has to be a directory that belongs to the agent's user, or that this user may make", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	if err := makeData(ctx, dir, log); err != nil {
		return nil, err
	}
	etcd, err := startEtcd(ctx, filepath.Join(dir, dataDir), log)
	if err != nil {
		return nil, err
	}
	client := v3client.New(etcd.Server)
	s := &Store{etcd: client, prefix: embeddedPrefix, ttl: claimTTL, log: log}
	s.stop = func() error {
		client.Close() // it returns that its own context has ended, nothing else
		etcd.Close()
		return lock.Close()
	}
	if err := s.dropClaims(ctx); err != nil {
		client.Close()
		etcd.Close()
		return nil, err
	}
	return s, nil
}

// makeData makes etcd's data in dir unless it is there. An etcd that is killed
// while it makes its first files may leave some with which it never starts again
// (https://github.com/etcd-io/etcd/issues/12578), so they get their place when
// they are complete.
func makeData(ctx context.Context, dir string, log *slog.Logger) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Stat(dataDir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.RemoveAll(newDir); err != nil {
		return err
	}
	etcd, err := startEtcd(ctx, filepath.Join(dir, newDir), log)
	if err != nil {
		return err
	}
	etcd.Close()
	for _, sub := range []string{"/member/snap", "/member/wal", "/member", ""} {
		if err := durable.SyncDir(root, newDir+sub); err != nil {
			return err
		}
	}
	if err := root.Rename(newDir, dataDir); err != nil {
		return err
	}
	return durable.SyncDir(root, ".")
}

// startEtcd starts a cluster of one member that listens nowhere, and waits until
// it serves.
func startEtcd(ctx context.Context, dir string, log *slog.Logger) (*embed.Etcd, error) {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = "agent", dir
	cfg.ListenPeerUrls, cfg.ListenClientUrls, cfg.AdvertiseClientUrls = nil, nil, nil
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}} // a name only; kept in the data
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.EnableGRPCGateway = false

	// The only member waits for its election and for nothing else.
	cfg.TickMs, cfg.ElectionMs = 20, 200
	// The log of changes is held in memory between two snapshots.
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 1000, 100
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, "10m"
	// Beyond a quota etcd refuses all writes until somebody with etcdctl allows
	// them again, and here nobody can. The disk is the limit.
	cfg.QuotaBackendBytes = -1

	logger, level := zapLogger(log)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)

	ctx, cancel := context.WithTimeoutCause(ctx, startup, fmt.Errorf("it is not ready after %v; when its disk is not just slow, "+
		"move %s away: the agent finds its work again", startup, dir))
	defer cancel()
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	select {
	case <-e.Server.ReadyNotify():
		level.SetLevel(laterLevel)
		return e, nil
	case <-e.Server.StopNotify():
		err = errors.New("start etcd: it stopped; its log says why")
	case <-ctx.Done():
		err = fmt.Errorf("start etcd: %w", context.Cause(ctx))
	}
	e.Close()
	return nil, err
}

// dropClaims voids all claims. Only who knows that no other process works on
// the jobs may call it.
func (s *Store) dropClaims(ctx context.Context) error {
	_, err := s.txn(ctx, nil, []clientv3.Op{
		clientv3.OpDelete(s.claim(""), clientv3.WithPrefix()),
		clientv3.OpDelete(s.prefix+"slots/", clientv3.WithPrefix()),
		clientv3.OpDelete(s.progress(""), clientv3.WithPrefix()),
	}, nil)
	return err
}
