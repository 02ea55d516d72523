// Reads one topic for each codec with a Kafka client of JavaScript, and prints what it found as JSON lines.
//
// Owns: what `kafkajs` and `@platformatic/kafka` do with each codec. Promises: a line with the client's version, then a line for
// each topic, with the ids of its first COUNT events or with the client's error. Leaves the judgement to checks/kafka_codecs.py.
//
// Arguments: CLIENT BROKERS COUNT CODEC=TOPIC...; ADDED in the environment is a module that gives the client more codecs.
import { readFileSync } from 'node:fs'
import { Consumer, stringDeserializers } from '@platformatic/kafka'
import kafkajs from 'kafkajs'

const [name, brokers, count, ...topics] = process.argv.slice(2)

/** The values of the first messages of a topic. */
const readers = {
  async kafkajs(topic) {
    const client = new kafkajs.Kafka({ brokers: brokers.split(','), logLevel: kafkajs.logLevel.NOTHING })
    const consumer = client.consumer({ groupId: topic + (process.env.ADDED ? '.kafkajs-added' : '.kafkajs') })
    const values = []
    try {
      await consumer.connect()
      await consumer.subscribe({ topic, fromBeginning: true })
      await new Promise((resolve, reject) => {
        // A message that can't be read ends the consumer, which tells it in this way only.
        consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error))
        const eachMessage = async ({ message }) => {
          if (values.push(message.value.toString()) === Number(count)) resolve()
        }
        consumer.run({ eachMessage }).catch(reject)
      })
    } finally {
      await consumer.disconnect()
    }
    return values
  },
  async '@platformatic/kafka'(topic) {
    const consumer = new Consumer({
      clientId: 'codecs',
      groupId: `${topic}.platformatic`,
      bootstrapBrokers: brokers.split(','),
      deserializers: stringDeserializers,
    })
    const values = []
    try {
      const stream = await consumer.consume({ topics: [topic], mode: 'earliest', autocommit: false })
      for await (const { value } of stream) if (values.push(value) === Number(count)) break
    } finally {
      await consumer.close(true)
    }
    return values
  },
}

function print(line) {
  console.log(JSON.stringify(line))
}

print({ version: JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version })
if (process.env.ADDED) await import(process.env.ADDED)
await Promise.all(topics.map(async (each) => {
  const [codec, topic] = each.split('=')
  try {
    print({ codec, ids: (await readers[name](topic)).map((value) => JSON.parse(value).id) })
  } catch (error) {
    print({ codec, error: error.message })
  }
}))
