// Reads every message with the JavaScript SDK of CloudEvents, and prints each event as a JSON line.
//
// Owns: what JavaScript needs to read the bridge's messages, both content modes, from each broker. Promises: `count`
// messages of each place, and no more. Leaves the comparison to check.py. Where the SDK has no binding for a broker, what
// stands in for it is the function of that broker alone.
import { Consumer, stringDeserializers } from '@platformatic/kafka'
import { jetstream } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import amqp from 'amqplib'
import { HTTP, Kafka } from 'cloudevents'

const plan = JSON.parse(process.env.INTEROP)

function fromKafka(message) {
  return Kafka.toEvent({ key: message.key, value: message.value, headers: Object.fromEntries(message.headers) })
}

// The SDK has no binding for AMQP. HTTP's headers are the same attributes under another prefix.
function fromRabbitmq({ properties, content }) {
  const headers = { 'content-type': properties.contentType }
  for (const [name, value] of Object.entries(properties.headers)) {
    if (name.startsWith('cloudEvents:')) headers[name.replace('cloudEvents:', 'ce-')] = value
  }
  return HTTP.toEvent({ headers, body: content.toString() })
}

// Nor one for NATS, whose names are those of HTTP. The SDK does not decode the values.
function fromNats(message) {
  const headers = {}
  for (const name of message.headers.keys()) headers[name] = decodeURIComponent(message.headers.get(name))
  return HTTP.toEvent({ headers, body: message.string() })
}

function say(broker, mode, event) {
  process.stdout.write(JSON.stringify({ broker, mode, event: event.toJSON() }) + '\n')
}

for (const [mode, topics] of Object.entries(plan.kafka)) {
  const consumer = new Consumer({
    clientId: 'interop',
    groupId: `javascript.${topics[0]}`,
    bootstrapBrokers: process.env.KAFKA_BROKERS.split(','),
    deserializers: stringDeserializers,
  })
  const stream = await consumer.consume({ topics, mode: 'earliest', autocommit: false })
  let left = plan.count
  for await (const message of stream) {
    say('kafka', mode, fromKafka(message))
    if (--left === 0) break
  }
  await consumer.close(true)
}

const connection = await amqp.connect(process.env.RABBITMQ_URL)
for (const [mode, queue] of Object.entries(plan.rabbitmq)) {
  const channel = await connection.createChannel()
  let left = plan.count
  // Waits for those that are still on their way; whoever runs this waits only so long.
  await new Promise((resolve, reject) => {
    const read = (message) => {
      say('rabbitmq', mode, fromRabbitmq(message))
      if (--left === 0) resolve()
    }
    channel.consume(`${queue}-javascript`, read, { noAck: true }).catch(reject)
  })
  await channel.close()
}
await connection.close()

const nats = await connect({ servers: process.env.NATS_URL })
for (const [mode, stream] of Object.entries(plan.nats)) {
  const messages = await (await jetstream(nats).consumers.get(stream)).consume()
  let left = plan.count
  for await (const message of messages) {
    say('nats', mode, fromNats(message))
    if (--left === 0) break
  }
}
await nats.close()
