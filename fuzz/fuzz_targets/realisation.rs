#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::realisation::fuzz_realisation(data));
