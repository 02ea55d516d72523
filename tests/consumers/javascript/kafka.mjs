// Reads the events from Kafka: works on each once, in order by key, and commits after the work.
import { Consumer, stringDeserializers } from '@platformatic/kafka'
import { Work, read } from './work.mjs'

const { KAFKA_BROKERS, KAFKA_GROUP, KAFKA_MEMBER, KAFKA_TOPICS, WORK_FILE } = process.env
const work = await Work.open(WORK_FILE)
const consumer = new Consumer({
  clientId: KAFKA_MEMBER,
  bootstrapBrokers: KAFKA_BROKERS.split(','),
  groupId: KAFKA_GROUP,
  // A name of its own, different for each process of the group: started again, it has its partitions back at once.
  groupInstanceId: KAFKA_MEMBER,
  deserializers: stringDeserializers,
})
const stream = await consumer.consume({
  topics: KAFKA_TOPICS.split(','),
  mode: 'committed',
  fallbackMode: 'earliest', // a new group begins with the oldest event
  autocommit: false,
})
process.once('SIGTERM', () => stream.close())

// One after the other: the next message waits until this one's work is done and committed.
for await (const message of stream) {
  const event = read(message.value)
  if (!event) {
    console.error(`set aside: ${message.topic}/${message.partition}@${message.offset}`)
  } else if (!(await work.once(event))) {
    console.error('copy:', event.id)
  }
  await message.commit()
}
await consumer.close()
