/**
 * What a worker's thread begins with: it loads the data plane part by part. Node opens all modules that
 * a module imports at the same time, and the limit of open files may be 64.
 */
await import("../engine/front.ts");
await import("../engine/session.ts");
await import("../worker.ts");
