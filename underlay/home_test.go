// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"testing"
	"time"
)

func TestChooseHome(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	c := func(id uint32, rtt int) candidate { return candidate{id: id, rtt: ms(rtt)} }
	failed := func(id uint32, rtt int) candidate { return candidate{id: id, rtt: ms(rtt), failed: true} }
	stays := home{id: 1, since: start}
	for name, tt := range map[string]struct {
		from       home
		after      time.Duration
		candidates []candidate
		want       uint32
	}{
		"nothing there":                     {home{}, 0, nil, 0},
		"the nearest":                       {home{}, 0, []candidate{c(1, 50), c(2, 20), c(3, 30)}, 2},
		"a known distance before none":      {home{}, 0, []candidate{c(1, 0), c(2, 200)}, 2},
		"no distance known: the first":      {home{}, 0, []candidate{c(5, 0), c(2, 0)}, 5},
		"no distance known: one connected":  {home{}, 0, []candidate{c(5, 0), {id: 2, connected: true}}, 2},
		"one that works":                    {home{}, 0, []candidate{failed(1, 5), c(2, 100)}, 2},
		"none works: one all the same":      {home{}, 0, []candidate{failed(1, 5), failed(2, 3)}, 1},
		"stays though one is a bit nearer":  {stays, time.Hour, []candidate{c(1, 50), c(2, 30)}, 1},
		"stays though one is half as far":   {stays, time.Hour, []candidate{c(1, 12), c(2, 5)}, 1},
		"stays in the first minutes":        {stays, 4 * time.Minute, []candidate{c(1, 100), c(2, 10)}, 1},
		"moves to one much nearer":          {stays, homeStay, []candidate{c(1, 100), c(2, 10)}, 2},
		"moves at once if it dies":          {stays, time.Second, []candidate{failed(1, 10), c(2, 300), c(3, 200)}, 3},
		"moves at once if it is gone":       {stays, time.Second, []candidate{c(2, 300)}, 2},
		"stays if all are dead":             {stays, time.Hour, []candidate{failed(2, 1), failed(1, 10)}, 1},
		"stays if distances are not known":  {stays, time.Hour, []candidate{c(1, 0), c(2, 10)}, 1},
		"moves if it was chosen in blindly": {home{1, start, true}, time.Second, []candidate{c(1, 100), c(2, 10)}, 2},
		"leaves when there are none":        {stays, time.Second, nil, 0},
	} {
		got := tt.from.choose(at(tt.after), tt.candidates)
		if got.id != tt.want {
			t.Errorf("%s: %d, want %d", name, got.id, tt.want)
		}
		if moved := got.id != tt.from.id && got.id != 0; moved != (got.since == at(tt.after) && moved) {
			t.Errorf("%s: since %v", name, got.since)
		}
		if again := got.choose(at(tt.after), tt.candidates); again.id != got.id {
			t.Errorf("%s: then %d", name, again.id)
		}
	}
}
