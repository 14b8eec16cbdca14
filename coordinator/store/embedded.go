// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/nats-io/nats-server/v2/server"
)

// startEmbedded starts a NATS server that only this process can reach.
func startEmbedded(o Options) (*server.Server, error) {
	srv, err := server.NewServer(&server.Options{
		ServerName: "pilot", DontListen: true, NoSigs: true,
		JetStream: true, StoreDir: o.Dir,
		SyncAlways: true, // what a caller was told must survive a power cut
	})
	if err != nil {
		return nil, fmt.Errorf("store: preparing the NATS server: %w", err)
	}
	srv.SetLoggerV2(natsLog{o.Log}, false, false, false)
	srv.Start()
	if !srv.ReadyForConnections(startLimit) {
		srv.Shutdown()
		srv.WaitForShutdown()
		return nil, errors.New("store: the NATS server in this process did not start; its log says why")
	}
	return srv, nil
}

// natsLog passes on what somebody may have to act on. The server's notices about its own start and end are left out.
type natsLog struct{ log *slog.Logger }

func (l natsLog) Noticef(string, ...any)    {}
func (l natsLog) Debugf(string, ...any)     {}
func (l natsLog) Tracef(string, ...any)     {}
func (l natsLog) Warnf(f string, v ...any)  { l.log.Debug("registry: " + fmt.Sprintf(f, v...)) }
func (l natsLog) Errorf(f string, v ...any) { l.log.Error("registry: " + fmt.Sprintf(f, v...)) }
func (l natsLog) Fatalf(f string, v ...any) { l.log.Error("registry: " + fmt.Sprintf(f, v...)) }
