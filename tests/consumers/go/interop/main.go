// Reads every message with the Go SDK of CloudEvents, and prints each event as a JSON line.
//
// Owns: what Go needs to read the bridge's messages, both content modes, from each broker. Promises: `count` messages of
// each place, and no more. Leaves the comparison to check.py. Where the SDK has no binding for a broker, what stands in
// for it is the function of that broker alone.
package main

import (
	"context"
	"encoding/json"
	"log"
	"net/url"
	"os"
	"strings"
	"time"

	kafkabinding "github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	natsbinding "github.com/cloudevents/sdk-go/protocol/nats_jetstream/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/twmb/franz-go/pkg/kgo"
)

var plan struct {
	Count    int                 `json:"count"`
	Kafka    map[string][]string `json:"kafka"`
	Rabbitmq map[string]string   `json:"rabbitmq"`
	Nats     map[string]string   `json:"nats"`
}

// What the binding for Kafka asks for is bytes and headers, whichever client they come from.
func fromKafka(ctx context.Context, record *kgo.Record) (*event.Event, error) {
	headers := map[string][]byte{}
	for _, header := range record.Headers {
		headers[strings.ToLower(header.Key)] = header.Value
	}
	message := kafkabinding.NewMessage(record.Value, string(headers["content-type"]), headers)
	return binding.ToEvent(ctx, message)
}

// The SDK's binding for AMQP is made for another version of the protocol and its client, so this maps the headers.
func fromRabbitmq(message amqp.Delivery) (*event.Event, error) {
	read := event.New()
	if strings.HasPrefix(message.ContentType, "application/cloudevents") {
		return &read, json.Unmarshal(message.Body, &read)
	}
	version := spec.New().Version("1.0")
	for name, value := range message.Headers {
		name, ours := strings.CutPrefix(name, "cloudEvents:")
		if !ours {
			continue
		}
		if attribute := version.Attribute(name); attribute == nil {
			read.SetExtension(name, value)
		} else if err := attribute.Set(read.Context, value); err != nil {
			return nil, err
		}
	}
	// As bytes it would count as binary data, and be written in base64.
	return &read, read.SetData(message.ContentType, json.RawMessage(message.Body))
}

// The binding for NATS leaves the values encoded.
func fromNats(ctx context.Context, message jetstream.Msg) (*event.Event, error) {
	headers := nats.Header{}
	for name, values := range message.Headers() {
		value, err := url.PathUnescape(values[0])
		if err != nil {
			return nil, err
		}
		headers.Set(name, value)
	}
	return binding.ToEvent(ctx, natsbinding.NewMessage(&nats.Msg{Header: headers, Data: message.Data()}))
}

func main() {
	log.SetFlags(0)
	check(json.Unmarshal([]byte(os.Getenv("INTEROP")), &plan))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for mode, topics := range plan.Kafka {
		readKafka(ctx, mode, topics)
	}
	for mode, queue := range plan.Rabbitmq {
		readRabbitmq(ctx, mode, queue+"-go")
	}
	for mode, stream := range plan.Nats {
		readNats(ctx, mode, stream)
	}
}

func readKafka(ctx context.Context, mode string, topics []string) {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(os.Getenv("KAFKA_BROKERS"), ",")...),
		kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	)
	check(err)
	defer client.Close()
	for left := plan.Count; left > 0; {
		records := client.PollRecords(ctx, left)
		check(records.Err())
		for _, record := range records.Records() {
			read, err := fromKafka(ctx, record)
			say("kafka", mode, read, err)
			left--
		}
	}
}

func readRabbitmq(ctx context.Context, mode, queue string) {
	connection, err := amqp.Dial(os.Getenv("RABBITMQ_URL"))
	check(err)
	defer connection.Close()
	channel, err := connection.Channel()
	check(err)
	messages, err := channel.ConsumeWithContext(ctx, queue, "", true, false, false, false, nil)
	check(err)
	for range plan.Count {
		message, open := <-messages
		if !open {
			log.Fatalf("expected %d messages in %s, but found fewer", plan.Count, queue)
		}
		read, err := fromRabbitmq(message)
		say("rabbitmq", mode, read, err)
	}
}

func readNats(ctx context.Context, mode, stream string) {
	connection, err := nats.Connect(os.Getenv("NATS_URL"))
	check(err)
	defer connection.Close()
	js, err := jetstream.New(connection)
	check(err)
	consumer, err := js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{})
	check(err)
	for range plan.Count {
		message, err := consumer.Next(jetstream.FetchMaxWait(30 * time.Second))
		check(err)
		read, err := fromNats(ctx, message)
		say("nats", mode, read, err)
	}
}

func say(broker, mode string, read *event.Event, err error) {
	check(err)
	check(read.Validate())
	check(json.NewEncoder(os.Stdout).Encode(map[string]any{"broker": broker, "mode": mode, "event": read}))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
