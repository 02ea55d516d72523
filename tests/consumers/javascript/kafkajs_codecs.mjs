// What kafkajs needs to read snappy, lz4 and zstd. Import it before the first consumer runs. Node.js 22.19 or newer.
import { zstdDecompressSync } from 'node:zlib'
import { lz4Decompress } from '@platformatic/wasm-utils'
import kafkajs from 'kafkajs'
import snappy from 'kafkajs-snappy'

const { CompressionCodecs, CompressionTypes } = kafkajs
CompressionCodecs[CompressionTypes.Snappy] = snappy
// A consumer needs no compress().
CompressionCodecs[CompressionTypes.LZ4] = () => ({ decompress: lz4Decompress })
CompressionCodecs[CompressionTypes.ZSTD] = () => ({ decompress: zstdDecompressSync })
