package stream

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(thirdEnv); dir != "" {
		third(dir)
		return
	}
	if dir := os.Getenv(victimEnv); dir != "" {
		victim(dir)
		return
	}
	_, _, _ = unpack(make([]byte, 1), pack(nil, nil, []byte{1})) // their channels are made outside of any bubble
	goleak.VerifyTestMain(m)
}
