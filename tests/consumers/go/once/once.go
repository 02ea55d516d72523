// Package once does the work of these examples once for each event: it remembers what was worked on already.
//
// The work is a line in a file, and the event's id stands in that line, so that after a crash both are there or neither.
// Yours is a database: make the id the primary key of a table, and insert it in the transaction that does the work.
package once

import (
	"bufio"
	"encoding/json"
	"os"
	"strconv"
	"syscall"
)

// Event is what the work needs of an envelope.
type Event struct {
	ID           string `json:"id"`
	Type         string `json:"type"`
	PartitionKey string `json:"partitionkey"`
}

// Read is false for a poison message, which no retry will fix.
func Read(body []byte) (event Event, ok bool) {
	err := json.Unmarshal(body, &event)
	return event, err == nil && event.ID != ""
}

// Work remembers the last ids.
type Work struct {
	file       *os.File
	known      map[string]bool
	oldest     []string // the oldest first
	crashAfter int
}

// remember is how many. An id may be forgotten once no copy of its event can come any more.
const remember = 1_000_000

// Open reads what was worked on before.
func Open(path string) (*Work, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	w := &Work{file: file, known: map[string]bool{}}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if event, ok := Read(lines.Bytes()); ok {
			w.add(event.ID)
		}
	}
	// For the test: dies after so many, with the work done and nothing said of it to the broker.
	w.crashAfter, _ = strconv.Atoi(os.Getenv("CRASH_AFTER"))
	return w, lines.Err()
}

// Once does the work, and says whether it did: not if the id is known.
func (w *Work) Once(event Event) (bool, error) {
	if w.known[event.ID] {
		return false, nil
	}
	line, err := json.Marshal(event)
	if err != nil {
		return false, err
	}
	if _, err := w.file.Write(append(line, '\n')); err != nil {
		return false, err
	}
	if err := w.file.Sync(); err != nil {
		return false, err
	}
	w.add(event.ID)
	if w.crashAfter--; w.crashAfter == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return true, nil
}

func (w *Work) add(id string) {
	w.known[id] = true
	w.oldest = append(w.oldest, id)
	if len(w.oldest) > remember {
		delete(w.known, w.oldest[0])
		w.oldest = w.oldest[1:]
	}
}
