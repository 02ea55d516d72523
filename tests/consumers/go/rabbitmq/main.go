// Reads the events from RabbitMQ: works on each once, in order by key, and acknowledges after the work.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"

	amqp "github.com/rabbitmq/amqp091-go"

	"sendbird-bridge/tests/consumers/once"
)

func main() {
	log.SetFlags(0)
	stop, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	exchange, queue := os.Getenv("RABBITMQ_EXCHANGE"), os.Getenv("RABBITMQ_QUEUE")
	done, err := once.Open(os.Getenv("WORK_FILE"))
	check(err)
	connection, err := amqp.Dial(os.Getenv("RABBITMQ_URL"))
	check(err)
	channel, err := connection.Channel()
	check(err)
	check(channel.ExchangeDeclare(exchange, "topic", true, false, false, false, nil))
	// Of all its consumers only one is given messages, another when that one goes: two at once would break the order.
	// What is rejected goes to the dead-letter exchange.
	_, err = channel.QueueDeclare(queue, true, false, false, false, amqp.Table{
		"x-queue-type":             "quorum",
		"x-single-active-consumer": true,
		"x-dead-letter-exchange":   exchange + ".dead",
	})
	check(err)
	check(channel.QueueBind(queue, "#", exchange, false, nil))
	check(channel.Qos(20, 0, false))
	messages, err := channel.ConsumeWithContext(stop, queue, "", false, false, false, false, nil)
	check(err)
	for message := range messages {
		event, ok := once.Read(message.Body)
		if !ok {
			log.Println("set aside:", message.RoutingKey)
			check(message.Reject(false))
			continue
		}
		fresh, err := done.Once(event)
		check(err)
		if !fresh {
			log.Println("copy:", event.ID)
		}
		check(message.Ack(false))
	}
	if stop.Err() == nil {
		log.Fatal("the connection is gone")
	}
	check(connection.Close())
}

// An error ends the program: the broker takes back what was not acknowledged, in its old order, and the next start goes on.
func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
