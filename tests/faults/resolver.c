/* A name that moves: engine.test is whatever address the file $JOULEGATE_TEST_ADDRESS holds. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
      dlsym(RTLD_NEXT, "getaddrinfo");
  char address[64] = "";
  const char *path = getenv("JOULEGATE_TEST_ADDRESS");
  if (node && path && strcmp(node, "engine.test") == 0) {
    FILE *file = fopen(path, "r");
    if (file) {
      if (!fgets(address, sizeof address, file)) address[0] = 0;
      fclose(file);
      node = address;
    }
  }
  return next(node, service, hints, found);
}
