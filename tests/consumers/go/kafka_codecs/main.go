// Reads one topic for each codec with franz-go, and prints what it found as JSON lines.
//
// Owns: what franz-go does with each codec. Promises: a line with its version, then a line for each topic, with the ids of its
// first COUNT events and the codecs of their batches, or with the client's error. Leaves the judgement to
// checks/kafka_codecs.py.
//
// Arguments: BROKERS COUNT CODEC=TOPIC...
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const limit = 20 * time.Second

// By the number in the attributes of a batch.
var codecs = []string{"none", "gzip", "snappy", "lz4", "zstd"}

type found struct {
	Version string   `json:"version,omitempty"`
	Codec   string   `json:"codec,omitempty"`
	IDs     []string `json:"ids,omitempty"`
	Batches []string `json:"batches,omitempty"`
	Error   string   `json:"error,omitempty"`
}

func main() {
	brokers := strings.Split(os.Args[1], ",")
	count, err := strconv.Atoi(os.Args[2])
	if err != nil {
		panic(err)
	}
	show(found{Version: version()})
	for _, each := range os.Args[3:] {
		codec, topic, _ := strings.Cut(each, "=")
		line := found{Codec: codec}
		if err := read(&line, brokers, topic, count); err != nil {
			line = found{Codec: codec, Error: err.Error()}
		}
		show(line)
	}
}

func version() string {
	build, _ := debug.ReadBuildInfo()
	for _, module := range build.Deps {
		if module.Path == "github.com/twmb/franz-go" {
			return strings.TrimPrefix(module.Version, "v")
		}
	}
	return ""
}

func show(line found) {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(text))
}

func read(line *found, brokers []string, topic string, count int) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer client.Close()
	end, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for len(line.IDs) < count && end.Err() == nil {
		fetches := client.PollRecords(end, count-len(line.IDs))
		if err := fetches.Err(); err != nil {
			return err
		}
		for _, record := range fetches.Records() {
			var event struct{ ID string }
			if err := json.Unmarshal(record.Value, &event); err != nil {
				return err
			}
			line.IDs = append(line.IDs, event.ID)
			line.Batches = append(line.Batches, codecs[record.Attrs.CompressionType()])
		}
	}
	return nil
}
