package jobs

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// While it starts, etcd warns about a configuration that is meant to be as it is.
const (
	startLevel = zapcore.ErrorLevel
	laterLevel = zapcore.WarnLevel
)

// zapLogger returns a logger for etcd that writes to log, and its level, startLevel.
func zapLogger(log *slog.Logger) (*zap.Logger, zap.AtomicLevel) {
	level := zap.NewAtomicLevelAt(startLevel)
	return zap.New(slogCore{LevelEnabler: level, log: log.With("part", "etcd")}), level
}

// slogCore is a zapcore.Core that writes to a slog.Logger.
type slogCore struct {
	zapcore.LevelEnabler
	log *slog.Logger
}

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	c.log = slog.New(c.log.Handler().WithAttrs(attributes(fields)))
	return c
}

func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	c.log.LogAttrs(context.Background(), level, e.Message, attributes(fields)...)
	return nil
}

func (c slogCore) Sync() error { return nil }

func attributes(fields []zapcore.Field) []slog.Attr {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(m)
	}
	var as []slog.Attr
	for _, f := range fields {
		if v, ok := m.Fields[f.Key]; ok {
			as = append(as, slog.Any(f.Key, v))
		}
	}
	return as
}
