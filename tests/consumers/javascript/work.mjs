// The work of these examples, and the memory of what was worked on already.
//
// The work is a line in a file, and the event's id stands in that line, so that after a crash both are there or neither.
// Yours is a database: make the id the primary key of a table, and insert it in the transaction that does the work.
import { open, readFile } from 'node:fs/promises'

/** The envelope; undefined for a poison message, which no retry will fix. */
export function read(body) {
  try {
    const event = JSON.parse(body)
    return typeof event.id === 'string' ? event : undefined
  } catch {
    return undefined
  }
}

export class Work {
  static async open(path, remember = 1_000_000) {
    const work = new Work()
    work.file = await open(path, 'a')
    const lines = (await readFile(path, 'utf8')).split('\n').filter(Boolean)
    // The oldest first. An id may be forgotten once no copy of its event can come any more.
    work.ids = new Set(lines.map((line) => JSON.parse(line).id))
    work.remember = remember
    // For the test: dies after so many, with the work done and nothing said of it to the broker.
    work.crashAfter = Number(process.env.CRASH_AFTER ?? 0)
    return work
  }

  /** Does the work, and says whether it did: not if the id is known. */
  async once({ id, type, partitionkey }) {
    if (this.ids.has(id)) return false
    await this.file.write(JSON.stringify({ id, type, partitionkey }) + '\n')
    await this.file.sync()
    this.ids.add(id)
    if (this.ids.size > this.remember) this.ids.delete(this.ids.values().next().value)
    if (--this.crashAfter === 0) process.kill(process.pid, 'SIGKILL')
    return true
  }
}
