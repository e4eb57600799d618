// The load of docker compose --profile load: one id a request, RATE of them a second, whatever the answers take.
// With COUNTERS, a request also names one of so many counters, campaign-1 and on, by Zipf's law: campaign-<k> has a share
// in proportion to 1 / k^SKEW.
import http from 'k6/http';

const rate = Number(__ENV.RATE);
// None unless it is set; docker-compose.yml sets 100.
const counters = Number(__ENV.COUNTERS || 0);
const skew = Number(__ENV.SKEW || 1);

export const options = {
  discardResponseBodies: true,
  scenarios: {
    ids: {
      executor: 'constant-arrival-rate',
      rate,
      timeUnit: '1s',
      // Then it begins again, because Compose restarts it.
      duration: '24h',
      preAllocatedVUs: 50,
      maxVUs: 500,
    },
  },
};

// The weights of the first k + 1 counters together, for each k.
const upTo = [];
for (let k = 1; k <= counters; k += 1) {
  upTo.push((upTo[k - 2] || 0) + k ** -skew);
}

function counter() {
  const draw = Math.random() * upTo[counters - 1];
  let [first, last] = [0, counters - 1];
  while (first < last) {
    const middle = Math.floor((first + last) / 2);
    if (draw < upTo[middle]) {
      last = middle;
    } else {
      first = middle + 1;
    }
  }
  return `campaign-${first + 1}`;
}

// Ids are drawn from as many as a minute has requests. So of the requests of a window some 63 % are
// different (1 - 1/e), the rest repeats.
export default function () {
  const id = Math.floor(Math.random() * rate * 60);
  const named = counters > 0 ? `&counter=${counter()}` : '';
  // The name is what its metrics go by; otherwise that is the URL, and there would be one for every id.
  const tags = { name: 'accept' };
  const answer = http.get(`${__ENV.TARGET}/api/verve/accept?id=${id}${named}`, { tags });
  if (answer.status !== 200) {
    console.error(`${answer.status} ${answer.headers['Failure-Reason'] || answer.error}`);
  }
}
