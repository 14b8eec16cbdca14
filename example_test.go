// SPDX-License-Identifier: Apache-2.0

package pilot_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"

	"github.com/pilot-protocol/pilot"
)

// Two agents in one process: planner, whose node makes the network and is its coordinator, serves a page; indexer joins by an
// invite and reads it. In two processes, on two hosts, the code is the same.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "pilot-example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	planner, err := pilot.Up(ctx, pilot.Options{
		Name: "planner", NewNetwork: "pilot", CoordinatorListen: "127.0.0.1:0",
		StateDir: filepath.Join(dir, "planner"), NoPortMapping: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer planner.Close()
	invite, err := planner.Invite(ctx)
	if err != nil {
		log.Fatal(err)
	}
	l, err := planner.Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, err := planner.WhoIsAddr(r.RemoteAddr)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		fmt.Fprintf(w, "the plan for %s", caller.Name)
	}))

	indexer, err := pilot.Up(ctx, pilot.Options{
		Name: "indexer", Invite: invite, StateDir: filepath.Join(dir, "indexer"), NoPortMapping: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer indexer.Close()
	resp, err := indexer.HTTPClient().Get("http://planner/")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(text))
	// Output: the plan for indexer
}

// An error says what happened in words for people, in a code for programs, and what to do next.
func ExampleErrorHint() {
	dir, err := os.MkdirTemp("", "pilot-example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	_, err = pilot.Up(context.Background(), pilot.Options{Name: "indexer", StateDir: filepath.Join(dir, "indexer")})
	fmt.Println(err)
	fmt.Println(pilot.ErrorCode(err))
	fmt.Println(pilot.ErrorHint(err))
	// Output:
	// this agent is in no network yet
	// USAGE
	// give an Invite (pilot invite makes one), or a name as NewNetwork
}
