// What people would write in place of the bridge: a Fastify handler that checks the signature and publishes the body.
//
// Usage: node handler.mjs nats|kafka|rabbitmq BROKER-ADDRESS NAME await|first PORT
//   await: answers 200 once the broker has acknowledged the message, and 503 if it does not
//   first: answers 200, and publishes then
// The token is in the environment variable TOKEN. Publishing asks for what the bridge asks for: an acknowledgement by the
// stream, by all in-sync replicas of an idempotent producer, or a confirmation of a persistent message.
import { createHmac, timingSafeEqual } from 'node:crypto'
import Fastify from 'fastify'

const [, , broker, address, name, form, port] = process.argv

const publishers = {
  async nats() {
    const { connect } = await import('@nats-io/transport-node')
    const { jetstream } = await import('@nats-io/jetstream')
    const stream = jetstream(await connect({ servers: address, maxReconnectAttempts: -1 }))
    return (callId, body) => stream.publish(`${name}.direct_call.end.${callId}`, body, { msgID: callId })
  },

  async kafka() {
    const { Kafka, Partitioners, logLevel } = await import('kafkajs')
    const kafka = new Kafka({ brokers: [address], logLevel: logLevel.NOTHING })
    const producer = kafka.producer({ idempotent: true, createPartitioner: Partitioners.DefaultPartitioner })
    await producer.connect()
    return (callId, body) => producer.send({ topic: name, acks: -1, messages: [{ key: callId, value: body }] })
  },

  async rabbitmq() {
    const { default: amqp } = await import('amqplib')
    const connection = await amqp.connect(address)
    const channel = await connection.createConfirmChannel()
    const options = { persistent: true, mandatory: true }
    return (callId, body) =>
      new Promise((resolve, reject) => {
        const confirmed = (error) => (error ? reject(error) : resolve())
        channel.publish('', name, body, { ...options, messageId: callId }, confirmed)
      })
  },
}

const publish = await publishers[broker]()
const token = process.env.TOKEN
const server = Fastify({ bodyLimit: 256 * 1024 })
// The signature is over the bytes as they came.
server.addContentTypeParser('application/json', { parseAs: 'buffer' }, (request, body, done) => done(null, body))
server.post('/webhooks/sendbird', async (request, reply) => {
  const expected = createHmac('sha256', token).update(request.body).digest()
  const given = Buffer.from(request.headers['x-sendbird-signature'] ?? '', 'hex')
  if (given.length !== expected.length || !timingSafeEqual(given, expected)) {
    return reply.code(401).send('wrong signature')
  }
  const callId = JSON.parse(request.body).direct_call.call_id
  if (form === 'first') {
    publish(callId, request.body).catch((error) => console.error(error.message))
    return reply.send('ok')
  }
  try {
    await publish(callId, request.body)
  } catch (error) {
    console.error(error.message)
    return reply.code(503).send('not published')
  }
  return reply.send('ok')
})
await server.listen({ host: '127.0.0.1', port: Number(port) })
