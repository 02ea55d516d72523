// Reads the events from RabbitMQ: works on each once, in order by key, and acknowledges after the work.
import amqp from 'amqplib'
import { Work, read } from './work.mjs'

const { RABBITMQ_URL, RABBITMQ_EXCHANGE, RABBITMQ_QUEUE, WORK_FILE } = process.env
const work = await Work.open(WORK_FILE)
const connection = await amqp.connect(RABBITMQ_URL)
const channel = await connection.createChannel()
await channel.assertExchange(RABBITMQ_EXCHANGE, 'topic', { durable: true })
// Of all its consumers only one is given messages, another when that one goes: two at once would break the order.
// What is rejected goes to the dead-letter exchange.
await channel.assertQueue(RABBITMQ_QUEUE, {
  durable: true,
  arguments: {
    'x-queue-type': 'quorum',
    'x-single-active-consumer': true,
    'x-dead-letter-exchange': `${RABBITMQ_EXCHANGE}.dead`,
  },
})
await channel.bindQueue(RABBITMQ_QUEUE, RABBITMQ_EXCHANGE, '#')
await channel.prefetch(20)

async function handle(message) {
  const event = read(message.content.toString())
  if (!event) {
    console.error(`set aside: ${message.fields.routingKey}`)
    return channel.reject(message, false)
  }
  if (!(await work.once(event))) console.error('copy:', event.id)
  channel.ack(message)
}

// amqplib does not wait for a handler before it calls it with the next message: the chain does. An error ends the
// program, the broker takes back what was not acknowledged, in its old order, and the next start goes on.
let last = Promise.resolve()
const { consumerTag } = await channel.consume(RABBITMQ_QUEUE, (message) => {
  if (!message) throw new Error('the queue is gone')
  last = last.then(() => handle(message))
})
process.once('SIGTERM', async () => {
  await channel.cancel(consumerTag)
  await last
  await connection.close()
})
