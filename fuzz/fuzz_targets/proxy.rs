#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::server::proxy::fuzz_proxy(data));
