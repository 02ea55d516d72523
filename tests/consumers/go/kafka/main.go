// Reads the events from Kafka: works on each once, in order by key, and commits after the work.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/twmb/franz-go/pkg/kgo"

	"sendbird-bridge/tests/consumers/once"
)

func main() {
	log.SetFlags(0)
	stop, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	done, err := once.Open(os.Getenv("WORK_FILE"))
	check(err)
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(os.Getenv("KAFKA_BROKERS"), ",")...),
		kgo.ConsumeTopics(strings.Split(os.Getenv("KAFKA_TOPICS"), ",")...),
		kgo.ConsumerGroup(os.Getenv("KAFKA_GROUP")),
		// A name of its own, different for each process of the group: started again, it has its partitions back at once.
		kgo.InstanceID(os.Getenv("KAFKA_MEMBER")),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), // a new group begins with the oldest event
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), // no partition goes to another member between its work and its commit
	)
	check(err)
	defer client.Close()
	for stop.Err() == nil {
		records := client.PollRecords(stop, 20)
		if err := records.Err0(); err != nil && stop.Err() == nil {
			log.Fatal(err)
		}
		records.EachRecord(func(record *kgo.Record) {
			event, ok := once.Read(record.Value)
			if !ok {
				log.Printf("set aside: %s/%d@%d", record.Topic, record.Partition, record.Offset)
				return
			}
			fresh, err := done.Once(event)
			check(err)
			if !fresh {
				log.Println("copy:", event.ID)
			}
		})
		check(client.CommitRecords(context.Background(), records.Records()...)) // all of them are worked on
		client.AllowRebalance()
	}
}

// An error ends the program: what is not committed comes again after the next start.
func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
