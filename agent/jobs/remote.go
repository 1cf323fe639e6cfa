package jobs

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Options say where the operator's etcd is.
type Options struct {
	Endpoints []string    // URLs of members
	Prefix    string      // all keys lie under Prefix/Site
	Site      string      // its agents, and no other's, share their jobs
	TLS       *tls.Config // nil: as the URLs say, with the system's certificates
	Username  string      // empty: no authentication beyond TLS
	Password  string
	Log       *slog.Logger // nil: none
}

// OpenRemote opens the store in an etcd cluster. When it returns nil, etcd has
// answered; when etcd does not, it fails within half a minute.
func OpenRemote(ctx context.Context, o Options) (*Store, error) {
	s, err := openRemote(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("open the job store in etcd at %s (state.endpoints): %w", strings.Join(o.Endpoints, ", "), err)
	}
	return s, nil
}

func openRemote(ctx context.Context, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	logger, level := zapLogger(o.Log)
	level.SetLevel(laterLevel)
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            o.Endpoints,
		TLS:                  o.TLS,
		Username:             o.Username,
		Password:             o.Password,
		DialTimeout:          attempt,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		Logger:               logger,
	})
	if err != nil {
		return nil, err
	}
	s := &Store{etcd: client, prefix: strings.TrimRight(o.Prefix, "/") + "/" + o.Site + "/", ttl: claimTTL, log: o.Log, stop: client.Close}
	_, err = try(ctx, s, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return client.Get(ctx, s.job(""), clientv3.WithPrefix(), clientv3.WithCountOnly())
	})
	if err != nil {
		client.Close()
		return nil, err
	}
	return s, nil
}
