/**
 * `transplice doctor`: everything that is wrong with this host for this configuration, each with a
 * command to run. Looks, and makes a few connections of its own: to the upstream and the name
 * servers, and one to an address where nobody is. Changes nothing.
 */
import type { Syscalls } from "../../../native-bindings/syscalls.ts";
import type { Config } from "../../config/config.ts";
import type { Problem } from "../../config/problem.ts";
import { problemText } from "../../config/problem.ts";
import { examineLimits } from "./limits.ts";
import { checkRules, edit, examineForRules, examineRulesInForce, type Setup } from "./rules.ts";
import { examineService } from "./service.ts";
import { examineNames, examineUpstream } from "./upstream.ts";
import { exitCode, type Finding, finding, FINDINGS, lineOf, report, sorted } from "./finding.ts";
import type { Outcome } from "../firewall/firewall.ts";
import type { FirewallBackend } from "../firewall/tools.ts";
import type { Program } from "../host.ts";
import type { Identity } from "../probe.ts";

/** The configuration is null where the file is not valid, for `problems`. */
export async function doctor(sys: Syscalls, file: string, config: Config | null, problems: readonly Problem[], json: boolean): Promise<Outcome> {
  const setup = config === null ? null : { config, file };
  const invalid = problems.map((problem) => finding("broken", "configuration", problemText(problem), edit({ file })));
  const findings = sorted(setup === null ? invalid : await examined(sys, setup));
  const code = exitCode(findings);
  const looked = Object.keys(FINDINGS).length;
  const out = json
    ? `${JSON.stringify({ healthy: code === 0, findings }, null, 2)}\n`
    : report(findings, setup === null ? 1 : looked);
  return { out, wrong: "", code };
}

/** `transplice firewall check`: only what stands against the rules. */
export async function firewallCheck(file: string, config: Config, asked: FirewallBackend | null): Promise<Outcome> {
  const findings = sorted(await checkRules({ config, file }, asked));
  return findings.length === 0
    ? { out: "nothing is missing\n", wrong: "", code: 0 }
    : { out: findings.map(lineOf).join(""), wrong: "", code: 1 };
}

async function examined(sys: Syscalls, setup: Setup): Promise<Finding[]> {
  const { config } = setup;
  const { program, findings } = examineService(sys, setup);
  const found = [...findings];
  const rules = config.upstream === null ? null : await examineForRules(setup, null);
  found.push(...(rules?.findings ?? []));
  const plan = rules?.plan ?? null;
  const own = plan?.own ?? null;
  const upstream = await examineUpstream(sys, setup, identityOf(config, program, own !== null && "uid" in own ? own.uid : null));
  found.push(...upstream.findings, ...(await examineNames(setup)));
  if (plan !== null) found.push(...(await examineRulesInForce(sys, setup, plan, program !== null)));
  found.push(...(await examineLimits(sys, setup, program, upstream.addresses)));
  return withoutEchoes(found);
}

/** As the service's own connections are known to the rules. */
function identityOf({ mark }: Config, program: Program | null, planned: number | null): Identity {
  return { mark, uid: mark !== null ? null : (program?.uid ?? planned) };
}

/** One fault, one finding: what follows from another is left out. */
const FOLLOWS: readonly [of: Finding["id"], from: Finding["id"]][] = [
  ["rules", "upstream-name"],
  ["dns", "upstream-name"],
  ["rules-absent", "backend"],
  ["rules-differ", "backend"],
  ["upstream-unreachable", "upstream-redirected"],
  ["not-redirected", "listener-address"],
];

function withoutEchoes(findings: readonly Finding[]): Finding[] {
  const has = (id: Finding["id"]): boolean => findings.some((each) => each.id === id);
  return findings.filter(({ id }) => !FOLLOWS.some(([of, from]) => of === id && has(from)));
}

