// Reads the events from NATS JetStream: works on each once, in order, and acknowledges after the work.
import { AckPolicy, jetstream, jetstreamManager } from '@nats-io/jetstream'
import { connect, nanos } from '@nats-io/transport-node'
import { Work, read } from './work.mjs'

const { NATS_URL, NATS_STREAM, NATS_CONSUMER, NATS_ACK_WAIT = 30, WORK_FILE } = process.env
const work = await Work.open(WORK_FILE)
const connection = await connect({ servers: NATS_URL })
await (await jetstreamManager(connection)).consumers.add(NATS_STREAM, {
  durable_name: NATS_CONSUMER,
  ack_policy: AckPolicy.Explicit,
  // One at a time: otherwise, after a crash, later events come before those that were not acknowledged.
  max_ack_pending: 1,
  ack_wait: nanos(NATS_ACK_WAIT * 1000), // longer than the work takes
})
const consumer = await jetstream(connection).consumers.get(NATS_STREAM, NATS_CONSUMER)
const messages = await consumer.consume({ max_messages: 1 })
process.once('SIGTERM', () => messages.stop())

for await (const message of messages) {
  const event = read(message.string())
  if (!event) {
    console.error(`set aside: ${message.subject}`)
    message.term() // is not delivered again, and stays in the stream
    continue
  }
  if (!(await work.once(event))) console.error('copy:', event.id)
  await message.ackAck()
}
await connection.close()
