/**
 * The search of seeds.ts as a WebAssembly module, written out instruction by instruction: it is one
 * loop, and its vectors (128-bit SIMD) are out of the reach of JavaScript.
 *
 * It imports a memory, m.m, of seeds of 32 bits, and exports a function f of a client, its factor,
 * a turn, and two places in the memory, in bytes. What f answers is the position of the seed (0: the
 * memory's first) with the greatest (hash + turn) | 0, a hash being (client ^ seed) * factor. It
 * looks at blocks of 16 seeds, no two of them alike: at the first place, every 64 bytes from there,
 * and at the second place, which is where the last block begins.
 *
 * By https://webassembly.github.io/spec/core/binary/, and with the names that it has there.
 */

/** Bytes, and lists of them, in their order. */
type Code = number | readonly Code[];

/** The bytes of the module. */
export function simdSearch(): Uint8Array {
  return Uint8Array.from(flat([
    [0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0], // "\0asm", version 1.
    section(1, [1, 0x60, 5, I32, I32, I32, I32, I32, 1, I32]), // One type: from five i32 to one.
    section(2, [1, M, M, 0x02, 0x00, 1]), // One import, m.m: a memory of 1 page or more.
    section(3, [1, 0]), // One function, of that type,
    section(7, [1, F, 0x00, 0]), // which is exported as f.
    section(10, [1, counted([1, 6, V128, CODE])]), // Six local variables, and the code.
  ]));
}

const flat = (code: Code) => ([code] as unknown[]).flat(Number.POSITIVE_INFINITY) as number[];
const section = (id: number, content: Code): Code => [id, counted(content)];
/** Preceded by the number of bytes, below 2 ** 14, as an unsigned LEB128. */
function counted(code: Code): Code {
  const { length } = flat(code);
  return length < 128 ? [length, code] : [(length & 127) | 128, length >> 7, code];
}

const [F, M] = [[1, 0x66], [1, 0x6d]]; // Names of one letter.
const [I32, V128] = [0x7f, 0x7b];
const [LOOP, IF, BR, END] = [[0x03, 0x40], [0x04, 0x40], 0x0c, 0x0b];
const [I32_ADD, I32_LT_U, I32_SHR_U, I32_CTZ, SELECT] = [0x6a, 0x49, 0x76, 0x68, 0x1b];
const V128_AND = [0xfd, 0x4e];
const V128_XOR = [0xfd, 0x51];
const V128_BITSELECT = [0xfd, 0x52];
const I32X4_SPLAT = [0xfd, 0x11];
const I32X4_EQ = [0xfd, 0x37];
const I32X4_GT_S = [0xfd, 0x3b];
const I32X4_ADD = [0xfd, 0xae, 0x01];
const I32X4_MUL = [0xfd, 0xb5, 0x01];
const I32X4_MAX_S = [0xfd, 0xb8, 0x01];
const I32X4_EXTRACT_LANE_0 = [0xfd, 0x1b, 0];
const I16X8_NARROW_I32X4_S = [0xfd, 0x85, 0x01];
const I8X16_NARROW_I16X8_S = [0xfd, 0x65];
const I8X16_BITMASK = [0xfd, 0x64];
const I32_CONST_2 = [0x41, 0x02];
const I32_CONST_64 = [0x41, 0xc0, 0x00];
const I32_CONST_LEAST = [0x41, 0x80, 0x80, 0x80, 0x80, 0x78]; // -(2 ** 31)

const get = (local: number) => [0x20, local];
const set = (local: number) => [0x21, local];
const tee = (local: number) => [0x22, local];
/** 16 bytes, aligned as an i32 is, from `offset` behind the address on the stack. */
const load = (offset: number) => [0xfd, 0x00, 2, offset];
/** i8x16.shuffle: the four lanes of one vector in another order. */
const shuffle = (vector: number, lanes: readonly number[]) => [
  get(vector), get(vector), 0xfd, 0x0d,
  lanes.map((lane) => [4 * lane, 4 * lane + 1, 4 * lane + 2, 4 * lane + 3]),
];
const splat = (from: number, to: number) => [get(from), I32X4_SPLAT, set(to)];
/** The greatest lane becomes all four. */
const splatGreatest = (vector: number) => [
  get(vector), shuffle(vector, [2, 3, 0, 1]), I32X4_MAX_S, set(vector),
  get(vector), shuffle(vector, [1, 0, 3, 2]), I32X4_MAX_S, set(vector),
];

// The parameters of f, and its local variables, which are vectors of four lanes.
const [CLIENT, FACTOR, TURN, AT, LAST] = [0, 1, 2, 3, 4];
const [CLIENTS, FACTORS, TURNS, LANES, BEST, FOUND] = [5, 6, 7, 8, 9, 10];

/** (hash + turn) | 0 of the four seeds at AT + offset. */
const turned = (offset: number) => [
  get(AT), load(offset), get(CLIENTS), V128_XOR, get(FACTORS), I32X4_MUL, get(TURNS), I32X4_ADD,
];
const isBest = (offset: number) => [turned(offset), get(BEST), I32X4_EQ];

const CODE = [
  splat(CLIENT, CLIENTS), splat(FACTOR, FACTORS), splat(TURN, TURNS),
  I32_CONST_LEAST, I32X4_SPLAT, set(BEST),
  LOOP,
    // A block: each lane has the greatest of four.
    turned(0), turned(16), I32X4_MAX_S,
    turned(32), turned(48), I32X4_MAX_S,
    I32X4_MAX_S, set(LANES),
    // Each lane keeps its best, and the block that this was found in. No branch to be mispredicted.
    get(AT), I32X4_SPLAT, get(FOUND),
    get(LANES), get(BEST), I32X4_GT_S, V128_BITSELECT, set(FOUND),
    get(LANES), get(BEST), I32X4_MAX_S, set(BEST),
    get(AT), get(LAST), I32_LT_U,
    IF, // On to the lesser of AT + 64 and LAST: the last block may begin inside the one before.
      get(AT), I32_CONST_64, I32_ADD, tee(AT),
      get(LAST), get(AT), get(LAST), I32_LT_U, SELECT, set(AT),
      BR, 1,
    END,
  END,
  // The best of the lanes; and the block of one that has it, the others counting as 0.
  get(BEST), set(LANES), splatGreatest(BEST),
  get(FOUND), get(LANES), get(BEST), I32X4_EQ, V128_AND, set(FOUND),
  splatGreatest(FOUND), get(FOUND), I32X4_EXTRACT_LANE_0, set(AT),
  // Which of that block it is: 16 bits, of which one is set.
  isBest(0), isBest(16), I16X8_NARROW_I32X4_S,
  isBest(32), isBest(48), I16X8_NARROW_I32X4_S,
  I8X16_NARROW_I16X8_S, I8X16_BITMASK, I32_CTZ,
  get(AT), I32_CONST_2, I32_SHR_U, I32_ADD,
  END,
];
