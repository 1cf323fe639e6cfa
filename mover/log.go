package mover

import "log/slog"

// LogValue is the destination without its ticket, which is a secret.
func (d Destination) LogValue() slog.Value { return slog.StringValue(d.Address) }

// LogValue is the request without its ticket.
func (r Request) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("key", r.Key),
		slog.String("engine", r.Engine),
		slog.String("file", r.Source.Name),
		slog.Int64("bytes", r.Source.Size),
		slog.Any("to", r.Destination),
	)
}
