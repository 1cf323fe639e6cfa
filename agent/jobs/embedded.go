package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"golang.org/x/sys/unix"
)

// embeddedPrefix is where the jobs lie in an etcd of our own.
const embeddedPrefix = "/glance-dtn/"

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
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	etcd, err := startEtcd(ctx, filepath.Join(dir, "etcd"), log)
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

// lockDir makes dir and locks it for this process. Closing the file unlocks it,
// and so does the process's end.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errors.New("another agent uses it; stop that one, or set state.embedded to another directory")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
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

	// The log of changes is held in memory between two snapshots.
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 1000, 100
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, "10m"
	// Beyond a quota etcd refuses all writes until somebody with etcdctl allows
	// them again, and here nobody can. The disk is the limit.
	cfg.QuotaBackendBytes = -1

	logger, level := zapLogger(log)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)

	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	select {
	case <-e.Server.ReadyNotify():
		level.SetLevel(laterLevel)
		return e, nil
	case <-e.Server.StopNotify():
		err = errors.New("etcd stopped while it was starting")
	case <-ctx.Done():
		err = fmt.Errorf("wait for etcd: %w", context.Cause(ctx))
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
