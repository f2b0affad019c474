/** [[relays]]: listeners that lead to an upstream of their own. */
import type { Relay } from "./config.ts";
import type { RelayValues } from "./settings.ts";
import type { TableList } from "./table-list.ts";

/** What is wrong with a table was reported, and has no listeners here. */
export function relaysOf(list: TableList): Relay[] {
  return list.entries.map(({ values }) => {
    const { listen, proxy_url: upstream, trust } = values as unknown as RelayValues;
    return { listen: listen ?? [], upstream: upstream ?? { kind: "direct" }, trust: trust ?? null };
  });
}
