// Reads the events from NATS JetStream: works on each once, in order, and acknowledges after the work.
package main

import (
	"context"
	"errors"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"sendbird-bridge/tests/consumers/once"
)

func main() {
	log.SetFlags(0)
	stop, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	done, err := once.Open(os.Getenv("WORK_FILE"))
	check(err)
	wait, err := time.ParseDuration(os.Getenv("NATS_ACK_WAIT") + "s")
	if err != nil {
		wait = 30 * time.Second
	}
	connection, err := nats.Connect(os.Getenv("NATS_URL"))
	check(err)
	defer connection.Close()
	js, err := jetstream.New(connection)
	check(err)
	consumer, err := js.CreateOrUpdateConsumer(stop, os.Getenv("NATS_STREAM"), jetstream.ConsumerConfig{
		Durable: os.Getenv("NATS_CONSUMER"),
		// One at a time: otherwise, after a crash, later events come before those that were not acknowledged.
		MaxAckPending: 1,
		AckWait:       wait, // longer than the work takes
	})
	check(err)
	messages, err := consumer.Messages(jetstream.PullMaxMessages(1))
	check(err)
	context.AfterFunc(stop, messages.Stop)
	for {
		message, err := messages.Next()
		if errors.Is(err, jetstream.ErrMsgIteratorClosed) {
			return
		}
		check(err)
		event, ok := once.Read(message.Data())
		if !ok {
			log.Println("set aside:", message.Subject())
			check(message.Term()) // is not delivered again, and stays in the stream
			continue
		}
		fresh, err := done.Once(event)
		check(err)
		if !fresh {
			log.Println("copy:", event.ID)
		}
		check(message.DoubleAck(context.Background()))
	}
}

// An error ends the program: what is not acknowledged comes again after the next start.
func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
